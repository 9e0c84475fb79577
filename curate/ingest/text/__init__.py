"""Text in other forms than UTF-8 and strict JSON."""
