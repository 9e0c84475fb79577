"""Results as terminal output."""
