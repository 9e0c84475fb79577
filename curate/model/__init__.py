"""A model on disk and in memory: find, load, adapt, and describe it for serving."""
