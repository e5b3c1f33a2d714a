"""How a chunk of codes becomes bytes and back: packed bits, or range coding with static tables.

Both use integers alone, so they are exact on every machine. docs/file-format.md defines the bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import constriction
import numpy as np
from jaxtyping import Int32, Int64

from tokenizer.errors import InputError

# The range coder's probabilities are multiples of 2^-24.
TABLE_BITS = 24

_MAX_BITS = 16
_stream = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]: a native module


class PackedCoder:
    """Each code in as many bits as the largest code of its codebook (2 to 65,536 entries) needs."""

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self._sizes = np.asarray(codebook_sizes, dtype=np.int64)
        widths = np.array([(size - 1).bit_length() for size in codebook_sizes])
        # Of all codes of a frame, written as 16 bits each, these bits are kept.
        kept = np.arange(_MAX_BITS) >= _MAX_BITS - widths[:, None]
        self._kept = np.flatnonzero(kept)
        self.bits_per_frame = int(widths.sum())

    def num_bytes(self, num_frames: int) -> int:
        """Bytes of that many frames, counted over all groups."""
        return -(-num_frames * self.bits_per_frame // 8)

    def encode(self, codes: Int32[np.ndarray, "G t K"]) -> bytes:
        """Packs codes, which must be in range."""
        words = np.ascontiguousarray(codes.reshape(-1, len(self._sizes)), dtype=">u2")
        bits = np.unpackbits(words.view(np.uint8), axis=1)
        return np.packbits(bits.take(self._kept, axis=1)).tobytes()

    def decode(
        self, payload: bytes, num_groups: int, num_frames: int
    ) -> Int32[np.ndarray, "G t K"]:
        """Unpacks `num_bytes` bytes; ValueError for codes out of range or bits past the last."""
        rows = num_groups * num_frames
        packed = np.frombuffer(payload, dtype=np.uint8)
        used = rows * self.bits_per_frame
        if used % 8 and int(packed[-1]) & (0xFF >> used % 8):
            raise InputError("bits are set behind the last code")
        bits = np.zeros((rows, _MAX_BITS * len(self._sizes)), dtype=np.uint8)
        bits[:, self._kept] = np.unpackbits(packed, count=used).reshape(rows, -1)
        codes = np.packbits(bits, axis=1).view(">u2").astype(np.int32)
        check_range(codes, self._sizes)
        return codes.reshape(num_groups, num_frames, -1)


class StaticCoder:
    """Range coding with one fixed probability table for each codebook; see `frequency_tables`.

    Attributes:
        checksum: CRC-32 of the tables.
    """

    def __init__(self, counts: np.ndarray, codebook_sizes: Sequence[int]) -> None:
        self._tables = frequency_tables(counts, codebook_sizes)
        self.checksum = zlib.crc32(b"".join(x.astype("<u4").tobytes() for x in self._tables))
        # constriction turns floats p_i into the integer probabilities
        #     1 + floor(p_i cumulated * ((2^24 - S) / sum p))
        # Floats that are whole numbers with sum 2^24 - S make that ratio 1 and every step exact,
        # so that its probabilities are the tables' own on every machine.
        self._models = [
            _stream.model.Categorical((table - 1).astype(np.float64), lazy=False, perfect=False)
            for table in self._tables
        ]

    def encode(self, codes: Int32[np.ndarray, "G t K"]) -> bytes:
        """Codes one codebook after the other, which must be in range."""
        encoder = _stream.queue.RangeEncoder()
        for k, model in enumerate(self._models):
            encoder.encode(np.ascontiguousarray(codes[:, :, k]).reshape(-1), model)
        return encoder.get_compressed().astype("<u4").tobytes()

    def decode(
        self, payload: bytes, num_groups: int, num_frames: int
    ) -> Int32[np.ndarray, "G t K"]:
        """Inverse of `encode`; ValueError for bytes that it never makes of that many codes."""
        words = np.frombuffer(payload, dtype="<u4").astype(np.uint32)
        decoder = _stream.queue.RangeDecoder(words)
        codes = np.empty((num_groups, num_frames, len(self._models)), dtype=np.int32)
        try:
            for k, model in enumerate(self._models):
                decoded = decoder.decode(model, num_groups * num_frames)
                codes[:, :, k] = decoded.reshape(num_groups, num_frames)
        except AssertionError as error:  # constriction's way to say "invalid data"
            raise InputError("its range-coded data is invalid") from error
        if not decoder.maybe_exhausted():
            raise InputError("range-coded data is left over behind the last code")
        return codes


def frequency_tables(
    counts: np.ndarray, codebook_sizes: Sequence[int]
) -> list[Int64[np.ndarray, " S"]]:
    """Integer probabilities from counts: each table's entries are >= 1 and sum to 2^24.

    The counts ``[K', S]`` say how often each code occurred in typical data, for a model with at
    least as many codebooks.

    With ``c_i`` one more than the i-th count, ``C_i`` their cumulated sum and S entries, the
    cumulated table is ``i + floor(C_i * (2^24 - S) / C_S)``: integers throughout, no ties to break,
    and no code ever has probability zero. ValueError if the counts do not fit the codebooks.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.dtype.kind not in "iu":
        raise InputError(
            f"counts are {counts.dtype} of shape {counts.shape}; expected integers [K, S]."
        )
    if len(counts) < len(codebook_sizes) or counts.shape[1] < max(codebook_sizes):
        raise InputError(
            f"counts have shape {counts.shape}, too few for {len(codebook_sizes)} codebooks of up "
            f"to {max(codebook_sizes)} entries."
        )
    tables = []
    for k, (row, size) in enumerate(zip(counts, codebook_sizes, strict=False)):
        if row.min() < 0 or row[size:].any():
            raise InputError(
                f"counts of codebook {k} are negative, or not zero from entry {size} on."
            )
        # The products below must not overflow: beyond 2^62 Python's own integers compute the same.
        exact = np.int64 if row.sum(dtype=np.float64) < 2**38 else object
        cumulated = np.cumsum(row[:size].astype(exact) + 1)
        scaled = cumulated * (2**TABLE_BITS - size) // cumulated[-1]
        tables.append(np.diff(scaled.astype(np.int64), prepend=0) + 1)
    return tables


def check_range(codes: np.ndarray, codebook_sizes: np.ndarray) -> None:
    """Raises ValueError, with an example, unless all codes ``[..., K]`` are in their codebooks."""
    wrong = (codes < 0) | (codes >= codebook_sizes)
    if wrong.any():
        k = int(np.argwhere(wrong)[0][-1])
        value = codes[wrong][0]
        raise InputError(
            f"code {value} is not in codebook {k}, which has {codebook_sizes[k]} entries"
        )
