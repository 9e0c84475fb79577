"""How results look, in the terminal, as HTML and in a notebook."""
