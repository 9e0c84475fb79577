"""How a run looks: its page, its model card, its lines in the terminal."""
