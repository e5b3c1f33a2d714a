"""Reading code files: nothing is believed before it is checked."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from jaxtyping import Int32

from tokenizer.codefile.entropy import PackedCoder, StaticCoder
from tokenizer.codefile.header import (
    CRC,
    END,
    FORMAT_VERSION,
    KIND_END,
    KIND_PACKED,
    KIND_STATIC,
    MAGIC,
    PREFIX,
    RECORD,
    CodeFileError,
    CodeFileHeader,
    Source,
    parse_header,
)

# Limits; both can be replaced by an argument.
MAX_FRAMES = 2**31  # of one channel group
MAX_CODES = 2**28  # that are held in memory at once: 1 GiB


@dataclass(frozen=True)
class CodeFileInfo:
    """A whole file: its header, its bytes, all its chunks, and those that are range-coded."""

    header: CodeFileHeader
    num_bytes: int
    num_chunks: int
    num_static_chunks: int

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return (self.header.num_samples or 0) / self.header.sampling_rate

    @property
    def bitrate(self) -> float:
        """Bits of the file per second of audio: all channels and all overhead; 0 without audio."""
        return 8 * self.num_bytes / self.seconds if self.header.num_samples else 0.0


class CodeReader(AbstractContextManager):
    """Reads a code file, a chunk at a time; a context manager.

    A seekable source is read through and all its checksums verified before anything is decoded, so
    that a damaged file is refused at once. A pipe is verified as it is read.

    Args:
        source: A path or a binary stream; streams are left open.
        counts: As for `CodeWriter`; needed to decode range-coded files.
        expected_fingerprint: The model that is to decode the codes. None: any.
        max_frames: Longer files are refused.

    Raises:
        CodeFileError: If it is no code file, a damaged one or another model's.
        FileNotFoundError: If there is no such file.
    """

    def __init__(
        self,
        source: Source,
        counts: np.ndarray | None = None,
        *,
        expected_fingerprint: str | None = None,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        if isinstance(source, (str, os.PathLike)):
            self._name = os.fspath(source)
            self._file = self._owned = Path(source).open("rb")  # noqa: SIM115 -- close() closes it
        else:
            self._name, self._file, self._owned = "The stream", source, None
        self._offset, self._max_frames = 0, max_frames
        self._info: CodeFileInfo | None = None
        self._consumed = False
        try:
            self._header, checksum = self._read_header()
            theirs = self._header.model_fingerprint
            if expected_fingerprint not in (None, theirs):
                self._fail(
                    f"holds codes of model {theirs}, not of {expected_fingerprint}: decode it with "
                    "the model that encoded it."
                )
            self._packed = PackedCoder(self._header.codebook_sizes)
            self._static = self._static_coder(counts, checksum)
            self._header_size = self._offset
            self._start = self._file.tell() if self._file.seekable() else None
            if self._start is not None:
                self.verify()
        except BaseException:
            self.close()
            raise

    @property
    def header(self) -> CodeFileHeader:
        """What the file says; of a pipe, frames and samples are None until its end was read."""
        return self._header if self._info is None else self._info.header

    @property
    def info(self) -> CodeFileInfo:
        """Sizes of the whole file, once it has been read to its end."""
        if self._info is None:
            raise CodeFileError(f"{self._name} has not been read to its end yet.")
        return self._info

    def verify(self) -> None:
        """Reads to the end and verifies all checksums, without decoding; a pipe is then spent."""
        deque(self._records(), maxlen=0)

    def chunks(self) -> Iterator[Int32[np.ndarray, "G t K"]]:
        """Yields the codes, a chunk at a time; from a pipe once only.

        CodeFileError at once if counts are needed and were not given, later for codes that are not
        in their codebooks and for damage to a pipe.
        """
        if self._header.entropy == "static" and self._static is None:
            self._fail("is range-coded: pass the counts of the model that encoded it.")
        return self._decoded()

    def read_all(self, max_codes: int = MAX_CODES) -> Int32[np.ndarray, "G T K"]:
        """All codes, no more than ``max_codes`` of them: a file may decode to far more than it is.

        Raises:
            CodeFileError: As `chunks`, and if there are more codes.
        """
        groups, books = self._header.num_groups, len(self._header.codebook_sizes)
        pieces, found = [np.empty((groups, 0, books), dtype=np.int32)], 0
        expected = (self.header.num_frames or 0) * groups * books
        for piece in self.chunks() if expected <= max_codes else ():
            found += piece.size
            if found > max_codes:
                break
            pieces.append(piece)
        if max(expected, found) > max_codes:
            self._fail(f"holds more than {max_codes} codes: use chunks(), or raise max_codes.")
        return np.concatenate(pieces, axis=1)

    def close(self) -> None:
        """Closes the file, if the reader opened it."""
        if self._owned is not None:
            self._owned.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fail(self, reason: str) -> NoReturn:
        raise CodeFileError(f"{self._name} {reason}")

    def _static_coder(self, counts: np.ndarray | None, checksum: int) -> StaticCoder | None:
        if counts is None or self._header.entropy != "static":
            return None
        try:
            coder = StaticCoder(counts, self._header.codebook_sizes)
        except ValueError as error:
            self._fail(f"was coded with other code counts than these: {error}")
        if coder.checksum != checksum:
            self._fail(
                f"was coded with other code counts (checksum {checksum:08x}) than these "
                f"({coder.checksum:08x}): decode it with the model that encoded it."
            )
        return coder

    def _take(self, size: int, where: str, missing: int = 0) -> bytes:
        """Exactly ``size`` bytes; ``missing`` are due after them."""
        data = self._read(size)
        if len(data) < size:
            self._fail(
                f"is truncated: it ends in {where}, and at least {size - len(data) + missing} "
                "bytes are missing."
            )
        return data

    def _read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        data = bytearray()
        while len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self._offset += len(data)
        return bytes(data)

    def _read_header(self) -> tuple[CodeFileHeader, int]:
        prefix = self._read(PREFIX.size)
        if not prefix:
            self._fail("is empty.")
        if not prefix.startswith(MAGIC[: len(prefix)]):
            self._fail(f"is no code file (.ltk): it begins with {prefix[:4]!r}.")
        if len(prefix) < PREFIX.size:
            self._fail(f"is truncated: it is only {len(prefix)} bytes long.")
        _, version, _, size = PREFIX.unpack(prefix)
        if version > FORMAT_VERSION:
            self._fail(
                f"has format version {version}; this library reads up to {FORMAT_VERSION}. Update "
                "latent-tokenizer."
            )
        if version < 1 or size < PREFIX.size + CRC.size:
            self._fail(f"has a damaged header (version {version}, {size} bytes).")
        rest = self._take(size - PREFIX.size, "its header", END.size + CRC.size)
        data = prefix + rest[: -CRC.size]
        self._crc = zlib.crc32(data)
        if CRC.unpack(rest[-CRC.size :])[0] != self._crc:
            self._fail("has a damaged header (its checksum is wrong).")
        try:
            return parse_header(data)
        except CodeFileError as error:
            self._fail(f"has an invalid header: {error}")

    def _records(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yields (chunk, kind, frames, payload), all of them verified, and then sets `info`."""
        if self._start is not None:
            self._file.seek(self._start)
        elif self._consumed:
            self._fail("has been read already; a pipe can be read only once.")
        self._consumed = True
        header, crc, self._offset = self._header, self._crc, self._header_size
        tail = END.size + CRC.size
        frames = chunks = static = 0
        while (head := self._take(1, f"the place of chunk {chunks}", tail - 1))[0] != KIND_END:
            where = f"chunk {chunks}"
            head += self._take(RECORD.size - 1, where, CRC.size + tail)
            kind, length, size = RECORD.unpack(head)
            largest = self._packed.num_bytes(header.num_groups * length)
            packed = kind == KIND_PACKED and size == largest
            coded = kind == KIND_STATIC and 0 < size < largest and size % 4 == 0
            # Only the last chunk may be short.
            in_order = frames == chunks * header.chunk_frames and 1 <= length <= header.chunk_frames
            if not in_order or not (packed or (coded and header.entropy == "static")):
                self._fail(f"is damaged: {where} has an impossible kind or size.")
            if frames + length > self._max_frames:
                self._fail(f"holds more than max_frames={self._max_frames} frames.")
            payload = self._take(size, where, CRC.size + tail)
            crc = zlib.crc32(payload, zlib.crc32(head, crc))
            if CRC.unpack(self._take(CRC.size, where, tail))[0] != crc:
                self._fail(
                    f"is damaged: {where} (frames {frames} to {frames + length - 1}) has a wrong "
                    "checksum."
                )
            yield chunks, kind, length, payload
            frames, chunks, static = frames + length, chunks + 1, static + (kind == KIND_STATIC)
        head += self._take(END.size - 1, "its end record", CRC.size)
        if CRC.unpack(self._take(CRC.size, "its end record"))[0] != zlib.crc32(head, crc):
            self._fail("is damaged: its end record has a wrong checksum.")
        _, promised, samples = END.unpack(head)
        if promised != frames:
            self._fail(f"promises {promised} frames and holds {frames}.")
        if self._file.read(1):
            self._fail("goes on behind its end record: something was appended to it.")
        try:
            complete = replace(header, num_frames=frames, num_samples=samples)
        except CodeFileError as error:
            self._fail(f"has an invalid end record: {error}")
        self._info = CodeFileInfo(complete, self._offset, chunks, static)

    def _decoded(self) -> Iterator[Int32[np.ndarray, "G t K"]]:
        for chunk, kind, length, payload in self._records():
            coder = self._packed if kind == KIND_PACKED else self._static
            assert coder is not None
            try:
                codes = coder.decode(payload, self._header.num_groups, length)
            except ValueError as error:
                self._fail(f"is invalid: in chunk {chunk} {error}.")
            yield codes


def read_codes(
    source: Source,
    counts: np.ndarray | None = None,
    *,
    expected_fingerprint: str | None = None,
    max_codes: int = MAX_CODES,
) -> tuple[CodeFileHeader, Int32[np.ndarray, "G T K"]]:
    """Reads a whole code file; arguments and errors as for `CodeReader` and its `read_all`."""
    with CodeReader(source, counts, expected_fingerprint=expected_fingerprint) as reader:
        codes = reader.read_all(max_codes)
        return reader.header, codes


def read_info(source: Source, counts: np.ndarray | None = None) -> CodeFileInfo:
    """Reads a code file through and verifies all of it.

    Without ``counts`` range-coded chunks are verified by their checksums only.
    """
    with CodeReader(source, counts) as reader:
        if reader.header.entropy == "packed" or counts is not None:
            deque(reader.chunks(), maxlen=0)
        else:
            reader.verify()
        return reader.info
