"""Chains of convolutions: how many positions they return, and which inputs an output depends on.

Modules of a chain are registered in the order in which a signal passes them. So lengths and
receptive fields follow exactly from kernels, strides, dilations and paddings.
"""

from __future__ import annotations

import warnings
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

Convolution = nn.Conv1d | nn.ConvTranspose1d


def convolutions(network: nn.Module) -> list[Convolution]:
    """The convolutions of a network, in the order of their registration."""
    return [module for module in network.modules() if isinstance(module, Convolution)]


def stride_of(network: nn.Module) -> int:
    """The product of all strides."""
    return prod(conv.stride[0] for conv in convolutions(network))


def _span(conv: Convolution) -> int:
    return (conv.kernel_size[0] - 1) * conv.dilation[0]


def output_length(network: nn.Module, length: int) -> int:
    """How many positions a chain of convolutions returns for ``length`` positions."""
    for conv in convolutions(network):
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
    layers: list[tuple[Convolution, int]] = []
    pad = 0
    for module in network.modules():
        if isinstance(module, nn.ConstantPad1d):  # belongs to the convolution that follows
            pad = module.padding[0]
        elif isinstance(module, Convolution):
            layers.append((module, pad + int(module.padding[0])))
            pad = 0
    for conv, padding in reversed(layers):
        stride, span = conv.stride[0], _span(conv)
        if isinstance(conv, nn.ConvTranspose1d):
            # Input i reaches outputs i * stride - padding .. i * stride - padding + span.
            first = -((span - padding - first) // stride)
            last = (last + padding) // stride
        else:
            first = first * stride - padding
            last = last * stride - padding + span
    return first, last


def overhang(network: nn.Module, unit: int) -> int:
    """How many samples an output of a chain depends on that are not its own, however it is padded.

    A causal chain has them all before its own samples.

    Args:
        network: The chain.
        unit: Samples for which a position of its input stands.
    """
    total = 0
    for conv in convolutions(network):
        stride = conv.stride[0]
        if isinstance(conv, nn.ConvTranspose1d):
            unit //= stride
        total += unit * max(0, _span(conv) - (stride - 1))
        if isinstance(conv, nn.Conv1d):
            unit *= stride
    return total


def _exact_padding(stride: int, hidden_states: Tensor) -> int | torch.SymInt:
    return -hidden_states.shape[-1] % stride


def fix_padding(network: nn.Module) -> None:
    """Makes the padded convolutions of EnCodec and Mimi exact and safe to load, in place.

    The library keeps kernel size and stride in buffers that are not saved, and pads by a float32
    formula that loses a frame beyond 2^24 samples (12 minutes). Here they are plain integers.
    """
    for module in network.modules():
        if not hasattr(module, "padding_total"):
            continue
        conv = module.conv
        assert isinstance(conv, nn.Conv1d)
        stride, kernel = conv.stride[0], _span(conv) + 1
        for name in ("stride", "kernel_size", "padding_total"):
            delattr(module, name)  # a buffer's name is reserved for tensors
        right = (kernel - stride) // 2
        exact = {
            "stride": stride,
            "kernel_size": kernel,
            "padding_total": kernel - stride,
            "padding_right": right,
            "padding_left": kernel - stride - right,
            "_get_extra_padding_for_conv1d": partial(_exact_padding, stride),
        }
        for name, value in exact.items():
            setattr(module, name, value)


def modern_weight_norm(network: nn.Module) -> None:
    """Replaces ``torch.nn.utils.weight_norm`` by its successor, in place, with the same weights.

    A module with the old one cannot be copied (`copy.deepcopy` raises), so its decoder could not be
    finetuned beside the original.
    """
    old = network.state_dict()
    for conv in convolutions(network):
        if hasattr(conv, "weight_g"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # that it is deprecated
                nn.utils.remove_weight_norm(conv)
            nn.utils.parametrizations.weight_norm(conv)
    # The successor reads the old names; this gives back the bits that the conversion has rounded.
    with torch.no_grad():
        network.load_state_dict(old)
