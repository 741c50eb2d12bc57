"""What a trained model does with a text."""
