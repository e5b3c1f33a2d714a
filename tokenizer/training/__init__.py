"""The three stages: train an autoencoder, fit a quantizer, finetune a decoder."""
