"""Analyses of trained models: what they compute on a text, and write."""
