"""Preparation: from clips of a corpus to rows of a dataset."""
