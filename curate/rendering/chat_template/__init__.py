"""Render with a model's own Jinja chat template, as `apply_chat_template` of transformers does."""
