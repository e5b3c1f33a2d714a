"""What a tokenizer is: tensors, rows, streams, and its checkpoint."""
