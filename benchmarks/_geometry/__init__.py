"""The parts of benchmarks/geometry.py, one a file."""
