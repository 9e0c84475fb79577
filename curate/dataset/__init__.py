"""The curated set on disk: its columns, its manifest, how it is written whole, and how it is queried."""
