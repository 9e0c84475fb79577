"""Let a model judge answers: scores, and preferences between two models' answers."""
