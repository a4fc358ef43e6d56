"""The parts of ``benchmarks/data.py``, one file each."""
