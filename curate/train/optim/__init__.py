"""Optimizers: AdamW in several precisions."""
