"""Latent diffusion: the transformer, its training loss and its sampler."""
