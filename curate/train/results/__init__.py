"""The result of a run: written, merged into its base, and what a later run starts from."""
