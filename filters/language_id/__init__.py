"""Identify languages with langdetect's profiles, stored as one matrix."""

UNKNOWN = "unknown"  # the language of a text without letters
