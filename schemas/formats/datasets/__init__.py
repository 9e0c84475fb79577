"""The shapes of public data sets of chats."""
