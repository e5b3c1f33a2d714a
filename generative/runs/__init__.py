"""Runs: what they train on, what they produce, how they are sampled, shown and exported."""
