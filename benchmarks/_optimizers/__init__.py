"""The parts of benchmarks/optimizers.py, one a file, and what they share."""
