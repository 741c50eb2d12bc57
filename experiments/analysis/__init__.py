"""Analyses of models: what they compute on a text, write, and can recall."""
