"""Measures meshnode: `python -m scripts.bench --help`."""
