"""Measures what auditing costs: `python -m benchmarks --help`."""
