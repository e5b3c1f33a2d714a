"""Metrics, evaluation of a tokenizer, comparison of quantizers, the report page."""
