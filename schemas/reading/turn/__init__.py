"""What one turn says: its role, its content, its reasoning, and how it may be used."""
