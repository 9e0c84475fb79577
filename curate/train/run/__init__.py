"""The records of a run: its folder, log, files, events and loggers."""
