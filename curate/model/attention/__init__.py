"""Choose an attention kernel, build its masks, and run it on packed sequences."""
