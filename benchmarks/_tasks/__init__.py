"""The parts of benchmarks/tasks.py, one a file."""
