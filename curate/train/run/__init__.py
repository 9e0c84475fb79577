"""A run on disk and on the wire: its folder, log, records, events and loggers."""
