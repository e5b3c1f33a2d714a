"""Metrics, evaluation of a tokenizer, comparison of quantizers, the report page."""

# Not lazily: the function and its file have one name, and whichever is imported last would win.
from tokenizer.evaluation.coding import Condition
from tokenizer.evaluation.evaluate import as_table, default_conditions, evaluate

__all__ = ["Condition", "as_table", "default_conditions", "evaluate"]
