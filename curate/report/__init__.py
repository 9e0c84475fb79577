"""Reports: results in the terminal, as HTML and in a notebook."""
