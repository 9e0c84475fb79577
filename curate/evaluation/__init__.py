"""`curate evaluate`: benchmarks through lm-eval, with the prompts of training, and scores of items not trained on."""
