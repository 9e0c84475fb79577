"""How the commands show on stderr how far they are."""
