"""Rows: what the tokenizer makes of audio for datasets and files.

Rows are plain mappings of NumPy arrays and numbers, so that ``Dataset.map(tokenizer.encode_codes)``
takes them as they are. Time comes first, because Arrow's arrays may grow on their first axis only:

    codes        int16 [T, K]     (int32 for codebooks of more than 32,768 entries)
    latents      float32 [T, D]
    gain         float32 [C]      root mean square that each channel was divided by
    num_samples  int              N, at the tokenizer's sampling rate
    num_channels int              C

Models that code one channel code each channel as if it were alone, and their frames follow one
another: ``[C * T, K]``. Stereo models code channels in pairs; an odd last channel is paired with
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenizer.audio import AudioSource
from tokenizer.core import TokenizerCore

Row = dict[str, Any]


def code_dtype(codebook_sizes: Sequence[int]) -> type[np.signedinteger]:
    """The smaller of int16 and int32 that holds the codes."""
    return np.int16 if max(codebook_sizes) <= 2**15 else np.int32


def stack_rows(rows: list[Row]) -> Row:
    """Rows as columns, a list each, as `datasets` wants batches."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


class SignalStream:
    """One signal on its way in: its gain is measured, then it can be read as latents.

    Attributes:
        gain: Float32 ``[C]``.
        num_channels: C.
        num_samples: N.
    """

    def __init__(self, tokenizer: TokenizerCore, source: AudioSource) -> None:
        self._tokenizer, self._source = tokenizer, source
        self.num_channels = source.num_channels
        squares = np.zeros(self.num_channels)
        self.num_samples = 0
        for block in source.blocks():
            squares += np.square(block, dtype=np.float64).sum(-1)
            self.num_samples += block.shape[-1]
        if self.num_samples == 0:
            raise ValueError(f"{source.name} holds no samples: there is nothing to encode.")
        means = squares / self.num_samples
        self.gain = np.array([tokenizer.measure_gain(m) for m in means], dtype=np.float32)

    @property
    def num_groups(self) -> int:
        """Groups of jointly coded channels."""
        return -(-self.num_channels // self._tokenizer.autoencoder.num_channels)

    def _blocks(self) -> Iterator[Tensor]:
        joint = self._tokenizer.autoencoder.num_channels
        device = self._tokenizer.device
        for block in self._source.blocks():
            x = torch.from_numpy(np.asarray(block / self.gain[:, None], dtype=np.float32)).to(
                device
            )
            missing = self.num_groups * joint - len(x)
            if missing:
                x = torch.cat([x, x[-1:].expand(missing, -1)])
            yield x.reshape(self.num_groups, joint, -1)

    def latents(self) -> Iterator[Tensor]:
        """Yields ``[G, D, t]``, a tile at a time, in bounded memory."""
        return self._tokenizer.encode_stream(self._blocks())

    def row(self) -> Row:
        """The columns that codes and latents share."""
        return {
            "num_samples": self.num_samples,
            "num_channels": self.num_channels,
            "gain": self.gain,
        }


def decode_rows(row: Any, column: str, decode: Any) -> Any:
    """Applies ``decode`` to a row, a bare array of ``column``, or a batch of either form."""
    if isinstance(row, (np.ndarray, Tensor)):
        return decode({column: row.cpu() if isinstance(row, Tensor) else row})
    if isinstance(row, Mapping):
        if column not in row:
            raise ValueError(f"The row has no {column!r}, only {sorted(row)}.")
        values = row[column]
        shared = [k for k in (column, "num_samples", "num_channels", "gain") if k in row]
        # A batch as `datasets` makes it: one list a column, whose first entry has two axes itself.
        batched = (
            np.ndim(row["num_samples"]) == 1
            if "num_samples" in row
            else (isinstance(values, list) and len(values) > 0 and np.ndim(values[0]) == 2)
        )
        if not batched:
            return decode({k: row[k] for k in shared})
        return [decode({k: row[k][i] for k in shared}) for i in range(len(values))]
    if isinstance(row, list):
        return [decode_rows(one, column, decode) for one in row]
    raise ValueError(f"Cannot decode a {type(row).__name__}: expected a row, an array or a batch.")
