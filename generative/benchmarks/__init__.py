"""Benchmarks: commands that print a table of ours beside peers, measured in one run."""
