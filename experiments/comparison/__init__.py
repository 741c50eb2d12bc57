"""RNN, GRU and LSTM compared."""
