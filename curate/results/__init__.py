"""What was measured of a model: the files in the folder `results` of its run."""
