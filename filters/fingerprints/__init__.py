"""Fingerprints of benchmarks: hashes of their items' words, and how conversations are compared with them."""
