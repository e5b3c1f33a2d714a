"""Sizes of chains of strided convolutions, as DAC and Oobleck are.

A transposed convolution of odd stride loses one sample, so such a decoder returns a few samples
less than ``T * hop``, and the encoder pads to enough frames to cover the whole input all the same.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tokenizer.autoencoders.convolutions import output_length, receptive_field, stride_of
from tokenizer.autoencoders.reader import Sizes
from tokenizer.errors import InputError


def encoder_reach(network: nn.Module, hop_length: int) -> tuple[int, int]:
    """Frames on either side that a chain of convolutions from samples to frames sees."""
    first, last = receptive_field(network, 0, 0)
    context = max(-(first // hop_length), last // hop_length)
    return context, context


def decoder_reach(network: nn.Module, hop_length: int) -> tuple[int, int]:
    """Frames on either side that the samples of a frame see."""
    first, last = receptive_field(network, 0, hop_length - 1)
    context = max(-first, last)
    return context, context


def strided_sizes(model: Any, sampling_rate: int, num_channels: int, latent_dim: int) -> Sizes:
    """The sizes of a model whose encoder and decoder are such chains; its audio keeps its level.

    Raises:
        ValueError: If encoder and decoder do not have the same stride, at least 2.
    """
    encoder, decoder = model.encoder, model.decoder
    hop, back = stride_of(encoder), stride_of(decoder)
    lost_samples = back - output_length(decoder, 1)
    if hop != back or output_length(encoder, hop) != 1 or not 0 <= lost_samples < hop:
        raise InputError(
            f"These strides are not supported: {hop} samples become "
            f"{output_length(encoder, hop)} frames, and a frame becomes "
            f"{output_length(decoder, 1)} samples. Ratios must be alike in encoder and "
            "decoder, and at least 2."
        )
    return Sizes(
        sampling_rate,
        num_channels,
        hop,
        latent_dim,
        encoder_reach(encoder, hop),
        decoder_reach(decoder, hop),
        lost_samples,
    )
