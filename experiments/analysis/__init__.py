"""What a trained model computes on a text, and what it writes."""
