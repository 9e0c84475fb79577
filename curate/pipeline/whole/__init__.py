"""Decisions over a large corpus: of most conversations it is known from their keys alone that they share nothing."""
