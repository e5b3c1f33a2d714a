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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from tokenizer.audio import AudioSource, is_column
from tokenizer.errors import InputError
from tokenizer.model.routes import HostSignal
from tokenizer.model.tensors import TensorTokenizer, check_finite

Row = dict[str, Any]

# Samples of a signal, of all channels, that are kept from measuring to encoding: some minutes.
_KEPT_SAMPLES = 2**23


def code_dtype(codebook_sizes: Sequence[int]) -> type[np.signedinteger]:
    """The smaller of int16 and int32 that holds the codes."""
    return np.int16 if max(codebook_sizes) <= 2**15 else np.int32


def stack_rows(rows: list[Row]) -> Row:
    """Rows as columns, a list each, as `datasets` wants batches."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


class SignalStream(HostSignal):
    """A signal to be read as latents; making one reads it once, for its length and level.

    Its samples are kept if they are few, and read again if they are many. ``gain`` is as for
    `TensorTokenizer.check_gain`; None: the root mean square of each channel.
    """

    def __init__(self, tokenizer: TensorTokenizer, source: AudioSource, gain: Any = None) -> None:
        self._tokenizer, self._source, self.name = tokenizer, source, source.name
        self.num_channels, self.num_samples = source.num_channels, 0
        gains = None if gain is None else tokenizer.check_gain(gain, source.num_channels)
        squares, largest = np.zeros(source.num_channels), np.zeros(source.num_channels)
        self._kept: list[np.ndarray] | None = []
        for block in source.blocks():  # Refuses a signal without samples.
            squares += np.square(block, dtype=np.float64).sum(-1)
            np.maximum(largest, np.abs(block).max(-1, initial=0), out=largest)
            self.num_samples += block.shape[-1]
            if self.num_samples * source.num_channels > _KEPT_SAMPLES:
                self._kept = None
            if self._kept is not None:
                self._kept.append(block)
        if gains is None:
            # Channels that are coded jointly have one gain: the balance between them is audible.
            joint = tokenizer.autoencoder.num_channels
            groups = np.arange(source.num_channels) // joint
            level = {
                group: tokenizer.measure_gain(
                    squares[groups == group].mean() / self.num_samples,
                    largest[groups == group].max(),
                )
                for group in set(groups.tolist())
            }
            gains = np.array([level[group] for group in groups.tolist()], dtype=np.float32)
        self.gain = gains

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """Yields the samples as they are, in blocks."""
        return self._source.blocks() if self._kept is None else iter(self._kept)

    def latents(self) -> Iterator[Tensor]:
        """Yields ``[G, D, t]``, a tile at a time, in bounded memory."""
        blocks = (normalized(self._tokenizer, x, self.gain) for x in self.blocks())
        for latents in self._tokenizer.encode_stream(blocks):
            yield check_finite(latents, f"The latents of {self.name}")

    def row(self) -> Row:
        """The columns that codes and latents share."""
        return {
            "num_samples": self.num_samples,
            "num_channels": self.num_channels,
            "gain": self.gain,
        }


def normalized(
    tokenizer: TensorTokenizer, block: Float32[np.ndarray, "C n"], gain: Float32[np.ndarray, " C"]
) -> Float[Tensor, "G M n"]:
    """Samples over their gain, in groups of jointly coded channels."""
    joint = tokenizer.autoencoder.num_channels
    x = torch.from_numpy(np.asarray(block / gain[:, None], dtype=np.float32)).to(tokenizer.device)
    missing = -len(x) % joint
    if missing:
        x = torch.cat([x, x[-1:].expand(missing, -1)])
    return x.reshape(len(x) // joint, joint, x.shape[-1])


def as_codes(value: Any) -> np.ndarray:
    """Codes of a row as int64 ``[T, n]``; ValueError if they are no table of integers."""
    codes = _table(value, "codes", "[T, n]")
    if codes.dtype.kind not in "iu":
        raise InputError(f"codes are {codes.dtype}; expected integers.")
    if codes.size and int(codes.max()) >= 2**31:  # int64 would turn the largest into negative ones
        raise InputError(f"codes run up to {codes.max()}; no codebook has that many entries.")
    return codes.astype(np.int64)


def as_latents(value: Any) -> np.ndarray:
    """Latents of a row as float32 ``[T, D]``; what float32 cannot hold becomes infinite."""
    latents = _table(value, "latents", "[T, D]")
    if latents.dtype.kind not in "fiu":
        raise InputError(f"latents are {latents.dtype}; expected numbers.")
    with np.errstate(over="ignore"):
        return latents.astype(np.float32)


def _table(value: Any, name: str, shape: str) -> np.ndarray:
    try:
        table = np.asarray(value)
        if table.dtype == object and table.ndim == 1:  # a cell of pandas: an array of arrays
            table = np.stack([np.asarray(frame) for frame in table])
    except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, say
        raise InputError(f"{name} are not a table {shape}: {error}.") from None
    if table.ndim != 2:
        raise InputError(f"{name} have shape {table.shape}; expected {shape}.")
    return table


def number_in(row: Row, name: str, default: int, *, low: int) -> int:
    """A count in a row, or the default where it is missing; ValueError if it is below ``low``."""
    value = row.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value or number < low:
        raise InputError(f"{name}={value!r:.60} is not a whole number from {low} on.")
    return number


def apply_gain(
    wave: Float32[np.ndarray, "C N"], gain: Float32[np.ndarray, " C"]
) -> Float32[np.ndarray, "C N"]:
    """Multiplies each channel with its gain; ValueError if the result is beyond float32."""
    with np.errstate(over="ignore"):
        scaled = wave * gain[:, None]
    if not np.isfinite(scaled).all():
        raise InputError(f"gain={gain.max():g} makes samples that float32 cannot hold.")
    return scaled


def decode_rows(row: Any, column: str, decode: Callable[[list[Row]], list[np.ndarray]]) -> Any:
    """Applies ``decode`` to a row, a bare array of ``column``, or a batch of either form."""
    if isinstance(row, list):
        # Each may be a batch itself.
        rows = [_single_rows(one, column) for one in row]
        waves = iter(decode([one for many, _ in rows for one in many]))
        return [[next(waves) for _ in many] if batched else next(waves) for many, batched in rows]
    many, batched = _single_rows(row, column)
    waves = decode(many)
    return waves if batched else waves[0]


def _single_rows(row: Any, column: str) -> tuple[list[Row], bool]:
    """The rows of a row, an array, or a batch in columns, and whether it was a batch."""
    if isinstance(row, (np.ndarray, Tensor)):
        return [{column: row.cpu() if isinstance(row, Tensor) else row}], False
    if hasattr(row, "to_dict"):  # a row or rows of pandas
        row = row.to_dict() if row.ndim == 1 else row.to_dict("list")
    if isinstance(row, Mapping):
        if column not in row:
            raise InputError(f"The row has no {column!r}, only {sorted(row)}.")
        values = row[column]
        shared = [k for k in (column, "num_samples", "num_channels", "gain") if k in row]
        # A batch as `datasets` makes it: one list a column, whose first entry has two axes itself.
        batched = (
            np.ndim(row["num_samples"]) == 1
            if "num_samples" in row
            else (isinstance(values, list) and len(values) > 0 and np.ndim(values[0]) == 2)
        )
        if not batched:
            return [{k: row[k] for k in shared}], False
        lengths = {k: len(row[k]) if is_column(row[k]) else None for k in shared}
        if len(set(lengths.values())) > 1:
            raise InputError(f"The columns of the batch differ in length: {lengths}.")
        return [{k: row[k][i] for k in shared} for i in range(len(values))], True
    raise InputError(f"Cannot decode a {type(row).__name__}: expected a row, an array or a batch.")
