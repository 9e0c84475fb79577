"""Plan a run as parts, make each by itself, and read them together: the same for every engine."""
