"""HTML pages of statistics and comparisons."""
