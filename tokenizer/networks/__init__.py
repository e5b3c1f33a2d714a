"""Transforms and network blocks at frame rate, and their exact block-by-block execution."""
