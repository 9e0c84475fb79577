"""Read a dump's records whatever their format: turns, keys, media and labels."""
