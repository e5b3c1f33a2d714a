"""What the quantizers that `faiss` trains have in common. Only `fit` needs faiss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.errors import InputError, import_extra


def require_faiss() -> Any:
    """The module `faiss`; raises ImportError if it is not installed."""
    return import_extra("faiss", "Fitting this quantizer (not encoding and decoding)", "faiss")


def bits_of(codebook_size: int) -> int:
    """Bits of a code; ValueError unless the size is a power of two, as faiss wants it."""
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits or not 1 <= bits <= 16:
        raise InputError(
            f"codebook_size is {codebook_size}; faiss wants a power of two from 2 to 65,536."
        )
    return bits


def as_training_set(frames: Float[Tensor, "M D"], codebook_size: int) -> np.ndarray:
    """Vectors as faiss takes them; ValueError for fewer than centroids, which it cannot cluster."""
    if len(frames) < codebook_size:
        raise InputError(
            f"{len(frames)} latents cannot train codebooks of {codebook_size} entries with faiss: "
            "it needs at least as many."
        )
    return np.ascontiguousarray(frames.cpu().numpy(), dtype=np.float32)


def draw_seed(generator: torch.Generator) -> int:
    """A seed for faiss, which takes no generators."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def to_tensor(vector: Any, *shape: int) -> Tensor:
    """A copy of a faiss vector of floats in the given shape."""
    array = require_faiss().vector_to_array(vector)
    return torch.from_numpy(array.reshape(shape).astype(np.float32))
