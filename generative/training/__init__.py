"""What `tokenizer.training` trains here: tasks of generative models, and their settings."""
