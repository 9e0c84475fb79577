"""Measures of texts for the filters: words, repetition, endings, wording."""
