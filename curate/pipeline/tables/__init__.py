"""Write the tables of a set from its parts."""
