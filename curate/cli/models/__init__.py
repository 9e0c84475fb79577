"""Commands that train, use and serve models."""
