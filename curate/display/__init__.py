"""Text, tables and HTML that are safe to show; nothing here knows what a conversation is."""
