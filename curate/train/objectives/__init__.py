"""What a step minimises, one module for each objective, and the losses that they share."""
