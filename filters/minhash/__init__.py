"""Near duplicates by their words: shingles, MinHash bands that propose pairs, and the pairs' exact Jaccard figures."""
