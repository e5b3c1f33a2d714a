"""Autoencoders of strided convolutions, as DAC and Oobleck are: their lengths and their reach.

Both are chains of convolutions, in the order in which their modules are registered, so lengths and
receptive fields follow exactly from kernels, strides, dilations and paddings.

A transposed convolution of odd stride loses one sample, so such a decoder returns a few samples
less than ``T * hop``, and the encoder pads to enough frames to cover the whole input all the same.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders.base import Encoder
from tokenizer.autoencoders.pretrained import LibraryAutoencoder, LibraryDecoder, frames_to_cover
from tokenizer.errors import InputError

Convolution = nn.Conv1d | nn.ConvTranspose1d


def _convolutions(network: nn.Module) -> list[Convolution]:
    return [module for module in network.modules() if isinstance(module, Convolution)]


def _stride(network: nn.Module) -> int:
    return prod(conv.stride[0] for conv in _convolutions(network))


def _span(conv: Convolution) -> int:
    return (conv.kernel_size[0] - 1) * conv.dilation[0]


def output_length(network: nn.Module, length: int) -> int:
    """How many positions a chain of convolutions returns for ``length`` positions."""
    for conv in _convolutions(network):
        trim = _span(conv) - 2 * int(conv.padding[0])
        if isinstance(conv, nn.ConvTranspose1d):
            length = (length - 1) * conv.stride[0] + trim + conv.output_padding[0] + 1
        else:
            length = (length - trim - 1) // conv.stride[0] + 1
    return length


def receptive_field(network: nn.Module, first: int, last: int) -> tuple[int, int]:
    """The input positions that the output positions ``first..last`` of a chain depend on.

    Returns:
        The first and the last; they may lie before position 0 or past the end.
    """
    for conv in reversed(_convolutions(network)):
        stride, padding, span = conv.stride[0], int(conv.padding[0]), _span(conv)
        if isinstance(conv, nn.ConvTranspose1d):
            # Input i reaches outputs i * stride - padding .. i * stride - padding + span.
            first = -((span - padding - first) // stride)
            last = (last + padding) // stride
        else:
            first = first * stride - padding
            last = last * stride - padding + span
    return first, last


class StridedEncoder(Encoder):
    """Audio ``[B, C, N]`` to latents ``[B, D, num_frames(N)]``, the network's first D channels.

    Others are the scale of a posterior whose mean these are. The decoder returns ``lost_samples``
    samples less than whole frames.
    """

    def __init__(self, network: nn.Module, latent_dim: int, lost_samples: int) -> None:
        super().__init__()
        self.network, self.latent_dim, self.lost_samples = network, latent_dim, lost_samples
        self.hop_length = _stride(network)
        first, last = receptive_field(network, 0, 0)
        self.context = max(-(first // self.hop_length), last // self.hop_length)

    def forward(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """Encodes audio of any length, followed by zeros to whole frames."""
        frames = frames_to_cover(audio.shape[-1], self.hop_length, self.lost_samples)
        length = frames * self.hop_length
        padded = nn.functional.pad(audio, (0, length - audio.shape[-1]))
        return self.network(padded)[:, : self.latent_dim]


class StridedAutoencoder(LibraryAutoencoder):
    """What the adapters to DAC and Oobleck share; their audio keeps its level.

    Raises:
        ValueError: If encoder and decoder do not have the same stride, at least 2.
    """

    def __init__(self, model: Any, *, latent_dim: int, num_channels: int) -> None:
        super().__init__(model)
        encoder, decoder = model.encoder, model.decoder
        hop, back = _stride(encoder), _stride(decoder)
        self.lost_samples = back - output_length(decoder, 1)
        if hop != back or output_length(encoder, hop) != 1 or not 0 <= self.lost_samples < hop:
            raise InputError(
                f"These strides are not supported: {hop} samples become "
                f"{output_length(encoder, hop)} frames, and a frame becomes "
                f"{output_length(decoder, 1)} samples. Ratios must be alike in encoder and "
                "decoder, and at least 2."
            )
        self.encoder = StridedEncoder(encoder, latent_dim, self.lost_samples)
        first, last = receptive_field(decoder, 0, hop - 1)
        self.decoder = LibraryDecoder(decoder, context=max(-first, last))
        self.sampling_rate = model.config.sampling_rate
        self.hop_length = hop
        self.latent_dim = latent_dim
        self.num_channels = num_channels
        self.normalize = False


def modern_weight_norm(network: nn.Module) -> None:
    """Replaces ``torch.nn.utils.weight_norm`` by its successor, in place, with the same weights.

    A module with the old one cannot be copied (`copy.deepcopy` raises), so its decoder could not be
    finetuned beside the original.
    """
    old = network.state_dict()
    for conv in _convolutions(network):
        if hasattr(conv, "weight_g"):
            nn.utils.remove_weight_norm(conv)
            nn.utils.parametrizations.weight_norm(conv)
    # The successor reads the old names; this gives back the bits that the conversion has rounded.
    with torch.no_grad():
        network.load_state_dict(old)
