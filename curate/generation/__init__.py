"""Generate conversations with a model: self-instruct, Evol-Instruct, Magpie, and answers to given prompts."""
