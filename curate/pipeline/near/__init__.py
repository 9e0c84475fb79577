"""Find near duplicates among the parts of a run."""
