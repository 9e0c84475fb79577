"""Texts to vectors, by a model of the user's."""
