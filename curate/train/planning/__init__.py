"""The plan of a run: memory, micro-batch, time and disk, chosen before any weights are loaded."""
