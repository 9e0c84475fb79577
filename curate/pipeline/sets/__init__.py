"""Make a set from existing sets: their rows are turned into the same parts that `clean` writes."""
