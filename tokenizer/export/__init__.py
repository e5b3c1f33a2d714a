"""A tokenizer as ONNX graphs, and as an autoencoder of diffusers."""
