"""Pages of HTML: their templates and the data in them."""
