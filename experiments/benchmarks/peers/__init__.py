"""The compared libraries, each used as its documentation shows."""
