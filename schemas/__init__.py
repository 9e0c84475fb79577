"""What conversations look like: the shape curate works on, one module per file format, and prompt templates."""
