"""Measure the texts of a curated set with a model: how likely the answers are, and whether they are safe."""
