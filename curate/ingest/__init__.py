"""Bytes to records: open files and archives, cut them at record boundaries, decode each record on its own."""
