"""Make a set from sets: their rows are read as the parts that `clean` makes of records."""
