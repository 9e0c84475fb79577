"""What the apps of chat services export, one module for each."""
