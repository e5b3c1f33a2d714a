"""Statistics of prepared rows: duration, use of codes, mean and deviation of latents.

Sums are kept, not means, so that shards and splits that were measured apart can be added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets_scripts.dataset.schema import parse
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Sums:
    """The sums of `Statistics` as they are stored, with its attributes."""

    rows: int
    num_samples: int
    frames: int
    code_counts: tuple[tuple[int, ...], ...]
    latents_sum: tuple[float, ...]
    latents_square_sum: tuple[float, ...]

    def __post_init__(self) -> None:
        fewest = (min(counts) for counts in self.code_counts if counts)
        if min(self.rows, self.num_samples, self.frames, *fewest) < 0:
            raise InputError("a count is negative.")
        if len(self.latents_sum) != len(self.latents_square_sum):
            raise InputError("latents_sum and latents_square_sum are not of the same length.")


class Statistics:
    """Sums over rows; add rows, or other statistics, and ask for `summary`.

    Without codes there are no ``codebook_sizes``; without latents ``latent_dim`` is 0.
    """

    def __init__(self, codebook_sizes: Sequence[int], latent_dim: int) -> None:
        self.codebook_sizes, self.latent_dim = tuple(codebook_sizes), latent_dim
        self.rows = self.num_samples = self.frames = 0
        self.code_counts = [np.zeros(size, dtype=np.int64) for size in self.codebook_sizes]
        self.latents_sum = np.zeros(latent_dim)
        self.latents_square_sum = np.zeros(latent_dim)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Adds a row with ``codes [T, K]``, ``latents [T, D]`` or both, and ``num_samples``."""
        self.rows += 1
        self.num_samples += int(row["num_samples"])
        codes, latents = row.get("codes"), row.get("latents")
        values = codes if codes is not None else latents
        self.frames += 0 if values is None else len(values)
        if codes is not None:
            columns = zip(self.codebook_sizes, np.asarray(codes).T, strict=True)
            self._count([np.bincount(column, minlength=size) for size, column in columns])
        if latents is not None and self.latent_dim:
            values = np.asarray(latents, dtype=np.float64)
            self.latents_sum += values.sum(0)
            self.latents_square_sum += np.square(values).sum(0)

    def add(self, other: Statistics) -> None:
        """Adds the sums of other rows; raises ValueError if they are of other codebooks."""
        ours = self.codebook_sizes, self.latent_dim
        theirs = other.codebook_sizes, other.latent_dim
        if ours != theirs:
            raise InputError(f"Statistics of codebooks and dimensions {ours} and {theirs}.")
        self._add(other)

    def _add(self, sums: Statistics | Sums) -> None:
        for name in ("rows", "num_samples", "frames", "latents_sum", "latents_square_sum"):
            setattr(self, name, getattr(self, name) + getattr(sums, name))
        self._count(sums.code_counts)

    def _count(self, counts: Sequence[Any]) -> None:
        self.code_counts = [a + b for a, b in zip(self.code_counts, counts, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON values."""
        return {
            "rows": self.rows,
            "num_samples": self.num_samples,
            "frames": self.frames,
            "code_counts": [counts.tolist() for counts in self.code_counts],
            "latents_sum": self.latents_sum.tolist(),
            "latents_square_sum": self.latents_square_sum.tolist(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Statistics:
        """The inverse of `to_json`; other keys are ignored. Raises ValueError if it is not."""
        sums: Sums = parse(Sums, value, "statistics")
        statistics = cls([len(counts) for counts in sums.code_counts], len(sums.latents_sum))
        statistics._add(sums)
        return statistics

    def summary(self, sampling_rate: int) -> dict[str, Any]:
        """What people and training scripts read, as JSON values.

        ``rows``, ``hours``, ``frames``; ``codebooks``, for each its ``size``, the share of entries
        in use (``utilization``), ``entropy`` in bits per code and ``perplexity``;
        ``bits_per_code``, the mean entropy; ``latents_mean`` and ``latents_std`` ``[D]``. What was
        not asked for is None.
        """
        codebooks = [_use(counts) for counts in self.code_counts]
        entropies = [codebook["entropy"] for codebook in codebooks]
        mean = self.latents_sum / max(self.frames, 1)
        variance = self.latents_square_sum / max(self.frames, 1) - mean**2
        return {
            "rows": self.rows,
            "hours": self.num_samples / sampling_rate / 3600,
            "frames": self.frames,
            "codebooks": codebooks or None,
            "bits_per_code": float(np.mean(entropies)) if codebooks else None,
            "latents_mean": mean.tolist() or None,
            "latents_std": np.sqrt(np.maximum(variance, 0.0)).tolist() or None,
        }


def _use(counts: np.ndarray) -> dict[str, Any]:
    share = counts[counts > 0] / max(int(counts.sum()), 1)
    entropy = float(-(share * np.log2(share)).sum()) + 0.0  # No minus before a zero.
    return {
        "size": len(counts),
        "utilization": len(share) / len(counts),
        "entropy": entropy,
        "perplexity": float(2**entropy),
    }


class ShardSums:
    """Statistics of a split from those of its shards, which come in any order.

    Integers are added at once; sums of floats wait, to be added in the order of the shards: they
    come out equal every time.
    """

    def __init__(self, start: Statistics) -> None:
        self._total = start
        self._floats: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, index: int, shard: Statistics) -> None:
        """Adds the statistics of the shard of this index."""
        self._floats[index] = shard.latents_sum, shard.latents_square_sum
        integers = Statistics(shard.codebook_sizes, shard.latent_dim)
        for name in ("rows", "num_samples", "frames", "code_counts"):
            setattr(integers, name, getattr(shard, name))
        self._total.add(integers)

    def total(self) -> Statistics:
        """Statistics of all shards; call it once."""
        for _, (sums, squares) in sorted(self._floats.items(), key=lambda each: each[0]):
            self._total.latents_sum = self._total.latents_sum + sums
            self._total.latents_square_sum = self._total.latents_square_sum + squares
        return self._total


def total(parts: Iterable[Statistics], start: Statistics) -> Statistics:
    """``start`` with statistics added in their order: float sums come out equal every time."""
    for part in parts:
        start.add(part)
    return start
