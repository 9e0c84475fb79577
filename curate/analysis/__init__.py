"""Read-only views of a set or a dump: statistics, comparison, the history of a record, selected conversations."""
