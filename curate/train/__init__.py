"""Training: turn a curated set into a model that you can chat with.

Nothing here is imported by the other commands, and nothing here imports Polars at its top: a machine with torch,
transformers, peft, numpy, click and rich can train from data that was rendered elsewhere.
"""
