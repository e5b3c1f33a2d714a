"""Codec language models: patterns of codes, the model, sampling."""
