"""Messages, template and tokenizer to ids, loss mask and pieces, and the proof that they are right; no torch."""
