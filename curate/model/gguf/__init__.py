"""A model in one GGUF file, as llama.cpp and Ollama run it: read for training as if it were a folder."""
