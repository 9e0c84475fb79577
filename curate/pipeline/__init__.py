"""Clean dumps into a curated set: recipe, repairs, the steps of one batch, decisions over the whole corpus."""
