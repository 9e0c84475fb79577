"""Language identification with langdetect's profiles as one matrix."""

UNKNOWN = "unknown"  # the language of a text with nothing to read
