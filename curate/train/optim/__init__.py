"""AdamW in several precisions."""
