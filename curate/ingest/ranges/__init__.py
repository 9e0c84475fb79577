"""Read byte ranges of a text, each by itself, and put what was read together again."""
