"""Identify languages with langdetect's profiles, stored as one matrix."""

UNKNOWN = "unknown"  # the language of a text without enough words, such as code
MIXED = "mixed"  # that of a text of which a third or more is in another language
