"""Modules whose tensors have more rows or columns than another's."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def copy_common(source: nn.Module, target: nn.Module) -> None:
    """Copies the first rows and columns that both modules' tensors have; others become zero."""
    values = source.state_dict()
    for name, tensor in target.state_dict().items():
        both = zip(tensor.shape, values[name].shape, strict=True)
        corner = tuple(slice(min(sizes)) for sizes in both)
        tensor.zero_()
        tensor[corner] = values[name][corner]
