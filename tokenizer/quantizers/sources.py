"""Latent frames in memory or on disk, and a uniform sample of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.errors import InputError, MissingFileError

_SAMPLE_BATCH = 65_536


@runtime_checkable
class LatentSource(Protocol):
    """Latent frames that can be read again and again, and need not fit in memory."""

    dim: int

    def __len__(self) -> int:
        """Number of latent frames."""
        ...

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "M D"]]:
        """Yields all frames in order, float32, at most ``batch_size`` at a time."""
        ...


class _Frames:
    """What sources have whose frames can be indexed."""

    _frames: Tensor | np.ndarray

    def __len__(self) -> int:
        """Number of frames, M."""
        return len(self._frames)

    def rows(self, start: int, stop: int) -> Float[Tensor, "M D"]:
        """Frames ``start`` to ``stop`` (excluded), float32; of a tensor perhaps its memory."""
        frames = self._frames[start:stop]
        if isinstance(frames, Tensor):
            return frames.float()
        return torch.from_numpy(np.array(frames, dtype=np.float32))

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "M D"]]:
        """Yields all frames in order, at most ``batch_size`` at a time."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        for start in range(0, len(self), batch_size):
            yield self.rows(start, start + batch_size)


class TensorSource(_Frames):
    """Latent frames held in memory.

    Args:
        tensor: Frames ``[M, D]`` of any floating-point type; kept, not copied.

    Raises:
        ValueError: If the tensor is not two-dimensional or not floating point.
    """

    def __init__(self, tensor: Float[Tensor, "M D"]) -> None:
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise InputError(
                f"Latents are {tensor.dtype} of shape {tuple(tensor.shape)}; expected floating "
                "point of shape [M, D]."
            )
        self._frames = tensor.detach()
        self.dim = tensor.shape[1]


class MemmapSource(_Frames):
    """Latent frames in a ``.npy`` file, read as they are needed.

    Args:
        path: File of a float32 or float16 array ``[M, D]``, M >= 1.
        dim: Of every frame only the first so many numbers. Default: all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such an array.
    """

    def __init__(self, path: str | Path, dim: int | None = None) -> None:
        self.path = Path(path)
        try:
            frames = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise MissingFileError(f"No latents at {self.path}.") from None
        except (ValueError, OSError, EOFError) as error:
            # NumPy's message for a file of another type is about pickles; that helps nobody.
            raise InputError(
                f"{self.path} is not a .npy file of latents [M, D] with M >= 1 ({error})."
            ) from None
        # np.load also opens .npz archives, which have neither shape nor dtype.
        if not isinstance(frames, np.ndarray):
            frames.close()
            raise InputError(f"{self.path} is an archive of arrays; expected one .npy array.")
        if frames.ndim != 2 or frames.dtype not in (np.float32, np.float16):
            raise InputError(
                f"{self.path} holds {frames.dtype} of shape {frames.shape}; expected float32 or "
                "float16 of shape [M, D]."
            )
        self._frames = frames[:, :dim]
        self.dim = int(self._frames.shape[1])


def sample_frames(source: LatentSource, n: int, generator: torch.Generator) -> Float[Tensor, "n D"]:
    """Draws n frames, or all if there are no more, uniformly without replacement, in one pass.

    They are a copy, in the order of the source. Which are drawn depends on the generator, on n and
    on the number of frames only. Memory: the sample, its indices and one batch.

    Raises:
        ValueError: If n < 1, or if the source yields other frames than it announced.
    """
    if n < 1:
        raise InputError(f"Cannot sample {n} frames; n must be at least 1.")
    total = len(source)
    indices = _distinct(total, min(n, total), generator)
    sample = torch.empty(len(indices), source.dim)
    num_seen = 0
    num_filled = 0
    for batch in source.batches(_SAMPLE_BATCH):
        stop = int(torch.searchsorted(indices, num_seen + len(batch)))
        sample[num_filled:stop] = batch[indices[num_filled:stop] - num_seen]
        num_filled = stop
        num_seen += len(batch)
    if num_seen != total:
        raise InputError(f"The source announced {total} frames and yielded {num_seen}.")
    return sample


def _distinct(total: int, n: int, generator: torch.Generator) -> Tensor:
    """A uniform choice of n of the integers below ``total``, sorted."""
    if 2 * n > total:
        order = torch.randperm(total, generator=generator, device=generator.device)
        return order[:n].sort().values.cpu()
    # A permutation would need memory for all of `total`. Draw what is missing until nothing is:
    # the first n distinct values of a uniform sequence are a uniform choice.
    chosen = torch.empty(0, dtype=torch.int64)
    while len(chosen) < n:
        more = torch.randint(
            total, (n - len(chosen),), generator=generator, device=generator.device
        )
        chosen = torch.cat([chosen, more.cpu()]).unique()
    return chosen
