"""Run one step over many tasks: in this process or in worker processes."""
