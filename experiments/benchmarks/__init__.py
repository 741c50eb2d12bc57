"""This library timed against other libraries."""
