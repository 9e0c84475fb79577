"""Convert sets and dumps to other formats."""
