"""Analyses of models: what they compute, what they write, what they recall."""
