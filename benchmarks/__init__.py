"""How fast the scheduler is, against a loop that does nothing else: `python -m benchmarks`."""
