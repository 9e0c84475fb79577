"""LLaMA tokenizers: vocabulary files, exact ids and exact counts in bulk."""
