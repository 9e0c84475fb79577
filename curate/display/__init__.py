"""Text, tables and HTML that are safe to display. Domain objects are unknown here."""
