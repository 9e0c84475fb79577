"""Sample from a model and chat with it."""
