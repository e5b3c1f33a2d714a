"""Writing code files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from tokenizer.codefile.entropy import PackedCoder, StaticCoder, check_range
from tokenizer.codefile.header import (
    CRC,
    END,
    KIND_END,
    KIND_PACKED,
    KIND_STATIC,
    RECORD,
    CodeFileError,
    CodeFileHeader,
    Target,
    Writable,
    header_bytes,
)
from tokenizer.saving import writing


class CodeWriter:
    """Writes a code file, in bounded memory; a context manager.

    A file appears under its name when the ``with`` block has ended without an error. Streams need
    not be seekable and are left open; after an error they lack the end record.

    Args:
        target: A path or a binary stream. Named pipes and devices are written to directly.
        header: What the file says. ``num_samples`` and ``num_frames`` may be None.
        counts: For entropy "static": how often each code occurred when the model was fitted,
            ``[K', S]`` integers, K' no less than the file's codebooks. Readers need the same.

    Attributes:
        header: The same.
        num_bytes: Bytes written so far.

    Raises:
        ValueError: If counts are missing or do not fit.
        FileNotFoundError: If the folder is not there.
    """

    def __init__(
        self, target: Target, header: CodeFileHeader, counts: np.ndarray | None = None
    ) -> None:
        self._target, self.header = target, header
        self._sizes = np.asarray(header.codebook_sizes)
        self._packed = PackedCoder(header.codebook_sizes)
        self._static = None
        if header.entropy == "static":
            if counts is None:
                raise CodeFileError("entropy='static' needs counts.")
            self._static = StaticCoder(counts, header.codebook_sizes)
        shape = (header.num_groups, header.chunk_frames, len(header.codebook_sizes))
        self._chunk, self._filled = np.empty(shape, dtype=np.int32), 0
        self._frames, self._crc, self.num_bytes = 0, 0, 0
        self._file: Writable | None = None
        self._finished = False

    def __enter__(self) -> CodeWriter:
        self._context = self._opened()
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with ExitStack() as stack:
            if isinstance(self._target, (str, os.PathLike)):
                path = stack.enter_context(writing(os.fspath(self._target)))
                self._file = stack.enter_context(path.open("wb"))
            else:
                self._file = self._target
            checksum = 0 if self._static is None else self._static.checksum
            self._emit(header_bytes(self.header, checksum))
            yield
            if not self._finished:
                if self.header.num_samples is None:
                    raise CodeFileError("finish(num_samples) was not called: nothing is written.")
                self.finish(self.header.num_samples)
            self._file.flush()

    def write(self, codes: np.ndarray) -> None:
        """Appends integers ``[groups, t, K]``, or ``[t, K]`` of a single group; any t.

        Raises:
            ValueError: For another shape, or codes that are not in their codebooks.
        """
        if self._file is None or self._finished:
            raise CodeFileError("write() outside of the with block, or after finish().")
        given = codes = np.asarray(codes)
        groups, length, books = self._chunk.shape
        if codes.ndim == 2 and groups == 1:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[::2] != (groups, books) or codes.dtype.kind not in "iu":
            raise CodeFileError(
                f"codes are {given.dtype} of shape {given.shape}; expected integers "
                f"[{groups}, t, {books}]."
            )
        check_range(codes, self._sizes)
        while codes.shape[1]:
            taken = codes[:, : length - self._filled]
            self._chunk[:, self._filled : self._filled + taken.shape[1]] = taken
            self._filled += taken.shape[1]
            codes = codes[:, taken.shape[1] :]
            if self._filled == length:
                self._flush()

    def flush(self) -> None:
        """Passes the chunks that are complete on at once."""
        if self._file is not None:
            self._file.flush()

    def finish(self, num_samples: int) -> None:
        """Writes what is left, and the end record with the samples of each channel.

        Raises:
            CodeFileError: If they are not plausible, or the header had announced something else.
        """
        if self._file is None or self._finished:
            raise CodeFileError("finish() outside of the with block, or twice.")
        self._flush()
        for name, value in (("num_frames", self._frames), ("num_samples", num_samples)):
            announced = getattr(self.header, name)
            if announced not in (None, value):
                raise CodeFileError(f"The header announced {name}={announced}, but it is {value}.")
        replace(self.header, num_frames=self._frames, num_samples=num_samples)  # checks them
        self._emit(END.pack(KIND_END, self._frames, num_samples))
        self._finished = True

    def _flush(self) -> None:
        if not self._filled:
            return
        codes = self._chunk[:, : self._filled]
        kind, payload = KIND_PACKED, self._packed.encode(codes)
        if self._static is not None and len(coded := self._static.encode(codes)) < len(payload):
            kind, payload = KIND_STATIC, coded
        self._emit(RECORD.pack(kind, self._filled, len(payload)) + payload)
        self._frames += self._filled
        self._filled = 0

    def _emit(self, data: bytes) -> None:
        assert self._file is not None
        self._crc = zlib.crc32(data, self._crc)
        data += CRC.pack(self._crc)
        view = memoryview(data)
        while view:  # raw streams may take less than they are given
            taken = self._file.write(view)
            if not taken:
                raise BlockingIOError("The stream takes no data; it must be a blocking one.")
            view = view[taken:]
        self.num_bytes += len(data)


def write_codes(
    target: Target, codes: np.ndarray, header: CodeFileHeader, counts: np.ndarray | None = None
) -> int:
    """Writes all codes of a clip at once, and returns the file's size in bytes.

    Arguments are those of `CodeWriter` and its `write`; ``header`` has ``num_samples``.
    """
    with CodeWriter(target, header, counts) as writer:
        writer.write(codes)
    return writer.num_bytes
