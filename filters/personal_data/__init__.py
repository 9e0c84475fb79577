"""Personal data and secrets in texts: their rules, how values are found, and how they are replaced."""
