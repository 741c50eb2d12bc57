"""HTML pages about runs: their templates, and the data packed into them."""
