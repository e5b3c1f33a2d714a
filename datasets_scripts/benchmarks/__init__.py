"""Benchmarks: commands that print a table, measured in one run."""
