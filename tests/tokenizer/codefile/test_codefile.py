"""Code files: exact round trips, one byte string for the same codes, and nothing else let in."""

import io
import math
import os
import re
import struct
import threading
import tracemalloc
import zlib
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tokenizer.codefile import (
    CodeFileError,
    CodeFileHeader,
    CodeReader,
    CodeWriter,
    read_codes,
    read_info,
    truncate_codes,
    write_codes,
)
from tokenizer.codefile.entropy import StaticCoder, frequency_tables
from tokenizer.errors import InputError

FINGERPRINT = "0123456789abcdef"

# The example of docs/file-format.md. This file was written by version 1 and must stay readable.
GOLDEN = bytes.fromhex(
    "894c544b0101340044ac0000b9010000010001000400080002000100a7e5a3e50123456789abcdef0400ff03"
    "0000003f1a677e6a02040004000000d710effd0dc22d05010200040000007f440040a69c2594000600000000"
    "0000009d0800000000000026e5d874"
)
GOLDEN_CODES = [[4, 7], [4, 7], [4, 7], [4, 7], [3, 1000], [4, 1]]
GOLDEN_COUNTS = np.ones((2, 1024), dtype=np.int64)
GOLDEN_COUNTS[0] = [1, 2, 3, 4, 5] + 1019 * [0]
GOLDEN_COUNTS[1, 7] = 10_000
GOLDEN_HEADER = CodeFileHeader(
    model_fingerprint=FINGERPRINT,
    sampling_rate=44_100,
    hop_length=441,
    num_channels=1,
    codebook_sizes=(5, 1024),
    gains=(0.5,),
    entropy="static",
    chunk_frames=4,
    num_frames=6,
    num_samples=2205,
)


def make_header(sizes, frames=None, **changes):
    values = {
        "model_fingerprint": FINGERPRINT,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "num_channels": changes.get("num_groups", 1),
        "codebook_sizes": tuple(sizes),
        "num_samples": None if frames is None else 160 * frames,
    }
    return CodeFileHeader(**(values | changes))


def make_codes(sizes, groups, frames, seed=0, skew=1.0):
    """Random codes ``[groups, frames, K]``; the larger the skew, the more of them are small."""
    u = np.random.default_rng(seed).random((groups, frames, len(sizes)))
    return (u**skew * np.array(sizes)).astype(np.int32)


def make_counts(sizes, seed=0):
    counts = np.random.default_rng(seed).geometric(1e-3, (len(sizes), max(sizes)))
    return np.where(np.arange(max(sizes)) < np.array(sizes)[:, None], counts, 0)


def written(codes, header, counts=None):
    stream = io.BytesIO()
    assert write_codes(stream, codes, header, counts) == len(stream.getvalue())
    return stream.getvalue()


class Pipe(io.RawIOBase):
    """One end of a pipe: not seekable, and it takes and gives a few bytes at a time."""

    def __init__(self, data=b"", step=5):
        self.data, self.step = bytearray(data), step

    def readable(self):
        return True

    def writable(self):
        return True

    def readinto(self, buffer):
        piece = self.data[: min(len(buffer), self.step)]
        del self.data[: len(piece)]
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data):
        self.data += bytes(data[: self.step])
        return min(len(data), self.step)


clips = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.sampled_from([2, 3, 5, 8, 257, 1000]), min_size=1, max_size=4),
        "groups": st.integers(1, 3),
        "frames": st.integers(0, 30),
        "chunk_frames": st.integers(1, 12),
        "entropy": st.sampled_from(["packed", "static"]),
        "skew": st.sampled_from([1.0, 3.0]),
        "seed": st.integers(0, 99),
    }
)


def make_clip(clip):
    codes = make_codes(clip["sizes"], clip["groups"], clip["frames"], clip["seed"], clip["skew"])
    header = make_header(
        clip["sizes"],
        clip["frames"],
        num_groups=clip["groups"],
        chunk_frames=clip["chunk_frames"],
        entropy=clip["entropy"],
    )
    return codes, header, make_counts(clip["sizes"])


# Round trips


@settings(deadline=None, max_examples=40)
@given(clip=clips, cuts=st.lists(st.integers(0, 30), max_size=5))
def test_codes_come_back_and_blocks_and_pipes_make_no_difference(clip, cuts):
    codes, header, counts = make_clip(clip)
    data = written(codes, header, counts)
    found, back = read_codes(io.BytesIO(data), counts, expected_fingerprint=FINGERPRINT)
    np.testing.assert_array_equal(back, codes)
    assert back.dtype == np.int32
    assert found == replace(header, num_frames=clip["frames"])

    pipe = Pipe()
    with CodeWriter(pipe, replace(header, num_samples=None), counts) as writer:
        for block in np.split(codes, sorted(cuts), axis=1):
            writer.write(block.astype(np.int64))
        writer.finish(160 * clip["frames"])
    assert pipe.data == data
    with CodeReader(pipe, counts) as reader:
        assert reader.header == replace(header, num_samples=None)
        np.testing.assert_array_equal(reader.read_all(), codes)
        assert reader.header == found
        with pytest.raises(CodeFileError, match="pipe"):
            reader.read_all()


def test_files_and_pipes_of_the_system(tmp_path):
    codes, header = make_codes((1024,) * 24, 2, 3000)[..., :24], make_header((1024,) * 24, 3000)
    header = replace(header, num_channels=3, num_groups=2, gains=(0.1, 1e-5, 3.0))
    path, fifo = tmp_path / "clip.ltk", tmp_path / "fifo"
    write_codes(path, codes, header)
    os.mkfifo(fifo)
    thread = threading.Thread(target=write_codes, args=(fifo, codes, header))
    thread.start()
    found, back = read_codes(fifo)
    thread.join()
    np.testing.assert_array_equal(back, codes)
    assert found == read_codes(path)[0]
    assert found.gains == pytest.approx(header.gains)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.ltk", "fifo"]
    assert fifo.is_fifo()


@pytest.mark.parametrize("entropy", ["packed", "static"])
def test_the_largest_codebooks(entropy):
    sizes = (65_536, 2, 65_535)
    codes, counts = make_codes(sizes, 2, 500), make_counts(sizes)
    codes[0, :2] = [0, 0, 0], [65_535, 1, 65_534]
    data = written(codes, make_header(sizes, 500, num_groups=2, entropy=entropy), counts)
    np.testing.assert_array_equal(read_codes(io.BytesIO(data), counts)[1], codes)


def test_one_group_may_be_written_without_its_axis():
    codes, header = make_codes((5, 9), 1, 7), make_header((5, 9), 7)
    assert written(codes[0].astype(np.uint8), header) == written(codes, header)


@settings(deadline=None, max_examples=40)
@given(clip=clips, n=st.integers(1, 4))
def test_dropping_codebooks_equals_never_having_written_them(clip, n):
    codes, header, counts = make_clip(clip)
    n = min(n, len(clip["sizes"]))
    shorter = io.BytesIO()
    size = truncate_codes(io.BytesIO(written(codes, header, counts)), shorter, n, counts)
    kept = replace(header, codebook_sizes=header.codebook_sizes[:n])
    assert shorter.getvalue() == written(codes[..., :n], kept, counts)
    assert size == len(shorter.getvalue())


def test_a_file_can_be_truncated_in_place(tmp_path):
    path = tmp_path / "clip.ltk"
    codes = make_codes((16,) * 4, 1, 50)
    write_codes(path, codes, make_header((16,) * 4, 50))
    truncate_codes(path, path, 3)
    np.testing.assert_array_equal(read_codes(path)[1], codes[..., :3])
    with pytest.raises(CodeFileError, match="n_codebooks=4"):
        truncate_codes(path, path, 4)
    assert read_info(path).header.codebook_sizes == (16, 16, 16)


# The format, from its description alone


def independent_tables(counts, sizes):
    tables = []
    for row, size in zip(np.asarray(counts).tolist(), sizes, strict=False):
        cumulated = [0, *accumulate(n + 1 for n in row[:size])]
        free = 2**24 - size
        tables.append([i + c * free // cumulated[-1] for i, c in enumerate(cumulated)])
    return tables


def independent_range_decoder(payload, tables):
    words = iter(struct.unpack(f"<{len(payload) // 4}I", payload))
    span, value, codes = 2**64 - 1, next(words) << 32 | next(words, 0), []
    for table in tables:
        scale = span >> 24
        point = value // scale
        if point >= 2**24:
            raise ValueError
        codes.append(next(i for i, right in enumerate(table[1:]) if point < right))
        left, right = table[codes[-1]], table[codes[-1] + 1]
        value, span = value - scale * left, scale * (right - left)
        if span < 2**32:
            span, value = span << 32, value << 32 | next(words, 0)
    if value >= 2**33 - 1 or next(words, None) is not None:
        raise ValueError
    return codes


def independent_range_encoder(codes, tables):
    low, span, m = 0, 2**64 - 1, 1
    for code, table in zip(codes, tables, strict=True):
        scale = span >> 24
        low, span = low + scale * table[code], scale * (table[code + 1] - table[code])
        if span < 2**32:
            low, span, m = low << 32, span << 32, m + 1
    top = (low + 2**32 - 1) >> 32
    words = [top >> 32 * i & (2**32 - 1) for i in reversed(range(m))]
    return struct.pack(f"<{m}I", *words) + ((low + span) >> 32 == top) * bytes(4)


def independent_reader(data, counts):
    """A reader of whole files, written from docs/file-format.md; returns ``[G][T][K]``."""
    size, _, _, _, groups, _, f, books, g = struct.unpack_from("<HIIHHHHHH", data, 6)
    assert data[:5] == b"\x89LTK\x01"
    assert size == 36 + f + 2 * books + 4 * g
    sizes = [s + 1 for s in struct.unpack_from(f"<{books}H", data, 32 + f)]
    crc = zlib.crc32(data[: size - 4])
    assert struct.unpack_from("<I", data, size - 4)[0] == crc
    codes, at = [[] for _ in range(groups)], size
    while data[at]:
        kind, t, n = struct.unpack_from("<BHI", data, at)
        payload = data[at + 7 : at + 7 + n]
        crc = zlib.crc32(data[at : at + 7 + n], crc)
        at += 11 + n
        assert struct.unpack_from("<I", data, at - 4)[0] == crc
        if kind == 1:
            bits = "".join(f"{byte:08b}" for byte in payload)
            for group in codes:
                for _ in range(t):
                    frame = []
                    for s in sizes:
                        width = math.ceil(math.log2(s))
                        frame.append(int(bits[:width], 2))
                        bits = bits[width:]
                    group.append(frame)
        else:
            run = groups * t
            tables = [x for x in independent_tables(counts, sizes) for _ in range(run)]
            flat = independent_range_decoder(payload, tables)
            for i, group in enumerate(codes):
                group += [[flat[k * run + i * t + j] for k in range(books)] for j in range(t)]
    assert struct.unpack_from("<I", data, at + 17)[0] == zlib.crc32(data[at : at + 17], crc)
    assert struct.unpack_from("<Q", data, at + 1)[0] == len(codes[0])
    assert len(data) == at + 21
    return codes


@settings(deadline=None, max_examples=40)
@given(clip=clips)
def test_a_reader_written_from_the_description_agrees(clip):
    codes, header, counts = make_clip(clip)
    assert independent_reader(written(codes, header, counts), counts) == codes.tolist()


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(2, 9),
    digits=st.integers(0, 12),
    length=st.integers(1, 200),
    seed=st.integers(0, 2**20),
)
def test_range_coding_is_the_integer_arithmetic_of_the_description(size, digits, length, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10**digits + 1, (1, size))
    share = (counts[0] + 1) / (counts[0] + 1).sum()
    codes = rng.choice(size, length, p=share).astype(np.int32)
    coder, tables = StaticCoder(counts, (size,)), independent_tables(counts, (size,))
    payload = coder.encode(codes.reshape(1, -1, 1))
    assert payload == independent_range_encoder(codes.tolist(), tables * length)
    np.testing.assert_array_equal(coder.decode(payload, 1, length)[0, :, 0], codes)


@settings(deadline=None, max_examples=40)
@given(
    words=st.lists(st.sampled_from([0, 1, 2**31, 2**32 - 1, 0xFDEF10D7]), min_size=1, max_size=4),
    frames=st.integers(1, 9),
)
def test_the_same_payloads_are_invalid_by_the_description(words, frames):
    payload = struct.pack(f"<{len(words)}I", *words)
    tables = [x for x in independent_tables(GOLDEN_COUNTS, (5, 1024)) for _ in range(frames)]
    coder = StaticCoder(GOLDEN_COUNTS, (5, 1024))
    try:
        codes = coder.decode(payload, 1, frames)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 -- the test's own
            independent_range_decoder(payload, tables)
    else:
        assert independent_range_decoder(payload, tables) == codes.T.ravel().tolist()


def test_golden_file():
    header, codes = read_codes(io.BytesIO(GOLDEN), GOLDEN_COUNTS)
    assert codes.tolist() == [GOLDEN_CODES]
    assert header == GOLDEN_HEADER
    assert written(np.array(GOLDEN_CODES), GOLDEN_HEADER, GOLDEN_COUNTS) == GOLDEN
    assert independent_reader(GOLDEN, GOLDEN_COUNTS) == [GOLDEN_CODES]


# Sizes and rates


@pytest.mark.parametrize("scale", [1, 10**6, 10**15])
def test_tables_are_exact_for_counts_of_any_size(scale):
    sizes = (2, 3, 1000)
    counts = make_counts(sizes) * scale
    tables = frequency_tables(counts, sizes)
    for table, expected in zip(tables, independent_tables(counts, sizes), strict=True):
        assert np.cumsum(table).tolist() == expected[1:]
        assert table.min() >= 1
        assert table.sum() == 2**24
    # Unused entries keep a code of their own, so that every clip can be coded.
    assert frequency_tables(np.array([[0, 2**62]]), (2,))[0].tolist() == [1, 2**24 - 1]


def test_static_coding_reaches_the_entropy_of_skewed_codes():
    sizes, frames = (1024,) * 4, 2048
    share = 1 / np.arange(1, 1025) ** 0.6
    share /= share.sum()
    counts = np.tile(np.round(1e7 * share).astype(np.int64), (4, 1))
    codes = np.random.default_rng(0).choice(1024, (frames, 4), p=share)
    entropy = -(share * np.log2(share)).sum()
    info = read_info(
        io.BytesIO(written(codes, make_header(sizes, frames, entropy="static"), counts))
    )
    packed = read_info(io.BytesIO(written(codes, make_header(sizes, frames))))
    assert info.num_static_chunks == info.num_chunks == 2
    assert packed.num_static_chunks == 0
    assert 8 * info.num_bytes == pytest.approx(entropy * codes.size, rel=0.02)
    assert info.num_bytes < 0.97 * packed.num_bytes


@settings(deadline=None, max_examples=40)
@given(clip=clips)
def test_static_files_are_never_longer_than_packed_ones(clip):
    codes, header, counts = make_clip(clip)
    packed = written(codes, replace(header, entropy="packed"))
    static = written(codes, replace(header, entropy="static"), counts)
    assert len(static) <= len(packed)


def test_size_and_bitrate_follow_from_the_header():
    header = make_header((1024,) * 16, 1000, gains=(0.5,))
    info = read_info(io.BytesIO(written(make_codes((1024,) * 16, 1, 1000), header)))
    assert header.bitrate == 16_000
    assert info.seconds == 10
    assert info.num_bytes == header.bitrate * info.seconds / 8 + 112  # docs/file-format.md, Size
    assert info.bitrate == 8 * info.num_bytes / 10
    empty = read_info(io.BytesIO(written(make_codes((7,), 1, 0), make_header((7,), 0))))
    assert (empty.num_chunks, empty.seconds, empty.bitrate) == (0, 0, 0)


# Damage


def refused(data, counts=GOLDEN_COUNTS):
    """The message with which these bytes are refused, as a file and through a pipe."""
    with pytest.raises(CodeFileError) as of_pipe, CodeReader(Pipe(data), counts) as reader:
        reader.read_all()
    with pytest.raises(CodeFileError) as of_file:
        CodeReader(io.BytesIO(data), counts).read_all()
    assert str(of_pipe.value) == str(of_file.value)
    assert "\n" not in str(of_file.value)
    return str(of_file.value)


PACKED = written(np.array(GOLDEN_CODES), replace(GOLDEN_HEADER, entropy="packed"))


@pytest.mark.parametrize("data", [GOLDEN, PACKED], ids=["static", "packed"])
def test_every_changed_byte_is_noticed(data):
    for position in range(len(data)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            refused(bytes(damaged))


@pytest.mark.parametrize("data", [GOLDEN, PACKED], ids=["static", "packed"])
def test_every_missing_byte_is_noticed(data):
    refused(b"")
    for length in range(1, len(data)):
        message = refused(data[:length])
        assert "truncated" in message
        if length >= 8:
            missing = int(message.split("at least ")[1].split()[0])
            assert 1 <= missing <= len(data) - length


def changed(data, position, value):
    return data[:position] + bytes([value]) + data[position + 1 :]


def test_messages_say_where_and_what():
    assert "chunk 1 (frames 4 to 5)" in refused(changed(GOLDEN, 75, 0xFF))
    assert re.search(r"chunk 1\b.*\b29 bytes", refused(GOLDEN[:70]))
    assert re.search(r"chunk 2\b.*\b21 bytes", refused(GOLDEN[:-21]))
    assert "header" in refused(changed(GOLDEN, 9, 0))
    refused(GOLDEN + b"\0")
    assert "b'RIFF'" in refused(b"RIFF" + GOLDEN[4:])
    newer = refused(changed(GOLDEN, 4, 2))
    assert re.search(r"version 2\b.*\b1\b", newer)


def test_chunks_cannot_be_dropped_or_swapped():
    header = make_header((256,), 6, chunk_frames=2)
    data = written(np.arange(6).reshape(6, 1), header)
    head, chunks, end = data[:-60], [data[i - 60 : i - 47] for i in (0, 13, 26)], data[-21:]
    assert head + b"".join(chunks) + end == data
    assert "chunk 0 " in refused(head + chunks[1] + chunks[0] + chunks[2] + end)
    assert "chunk 1 " in refused(head + chunks[0] + chunks[2] + end)
    assert "end record" in refused(head + chunks[0] + chunks[1] + end)


def test_a_file_that_changes_while_it_is_read_is_refused():
    stream = io.BytesIO(PACKED)
    reader = CodeReader(stream)
    stream.seek(-30, os.SEEK_END)
    stream.write(b"\xaa")
    with pytest.raises(CodeFileError, match="chunk 1"):
        reader.read_all()


# Forgery: files whose checksums are right


def sealed(data):
    """The same bytes, as far as they can be understood, with right checksums."""
    data, crc = bytearray(data), 0
    start, end = 0, max(12, struct.unpack_from("<H", data, 6)[0]) - 4
    while end + 4 <= len(data):
        crc = zlib.crc32(data[start:end], crc)
        struct.pack_into("<I", data, end, crc)
        start = end + 4
        if start >= len(data):
            break
        if data[start] and start + 7 <= len(data):
            end = start + 7 + struct.unpack_from("<I", data, start + 3)[0]
        else:
            end = start + 17
    return bytes(data)


def forged(data, fmt, position, value):
    data = bytearray(data)
    struct.pack_into("<" + fmt, data, position, value)
    return sealed(data)


def test_sealing_is_what_the_writer_does():
    assert sealed(GOLDEN) == GOLDEN
    assert sealed(GOLDEN[:48] + bytes(4) + GOLDEN[52:]) == GOLDEN


@pytest.mark.parametrize(
    ("fmt", "position", "value", "message"),
    [
        ("B", 5, 2, "entropy=2"),
        ("H", 6, 36, "32 bytes"),
        ("H", 6, 3, "3 bytes"),
        ("H", 6, 0xFFFF, "65450 bytes"),
        ("I", 8, 0, "sampling_rate=0"),
        ("I", 8, 2**32 - 1, "sampling_rate"),
        ("I", 12, 0, "hop_length=0"),
        ("H", 16, 0, "num_channels=0"),
        ("H", 16, 0xFFFF, "num_channels=65535"),
        ("H", 18, 0, "num_groups=0"),
        ("H", 18, 2, "num_groups=2"),
        ("H", 20, 0, "chunk_frames"),
        ("H", 22, 0xFFFF, "48 bytes"),
        ("H", 24, 0, "48 bytes"),
        ("H", 24, 0xFFFF, "48 bytes"),
        ("H", 26, 7, "48 bytes"),
        ("I", 28, 1, "0x1"),
        ("H", 40, 0, r"codebook_sizes\[0\]=1 "),
        ("f", 44, math.nan, "gain nan"),
        ("f", 44, -1.0, "gain -1"),
        ("f", 44, math.inf, "gain inf"),
        ("B", 52, 3, "chunk 0"),
        ("B", 52, 2, "chunk 0"),
        ("H", 53, 0, "chunk 0"),
        ("H", 53, 5, "chunk 0"),
        ("H", 53, 3, "chunk 0"),
        ("I", 55, 2**32 - 1, "chunk 0"),
        ("Q", -20, 2**60, "1152921504606846976 .*6"),
        ("Q", -20, 5, "5 frames .*6"),
        ("Q", -12, 2**60, "num_samples"),
        ("Q", -12, 7 * 441 + 1, "num_samples"),
    ],
)
def test_impossible_claims_are_refused_at_no_cost(fmt, position, value, message):
    data = forged(PACKED, fmt, position % len(PACKED), value)
    tracemalloc.start()
    try:
        with pytest.raises(CodeFileError, match=message):
            CodeReader(io.BytesIO(data), GOLDEN_COUNTS)
        with pytest.raises(CodeFileError, match=message), CodeReader(Pipe(data)) as reader:
            reader.read_all()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_huge_chunk_that_is_not_there_costs_little_memory(tmp_path):
    header = make_header((65_536,) * 64, chunk_frames=65_535)
    with pytest.raises(CodeFileError, match="chunk_frames"):
        replace(header, num_groups=2, num_channels=2)
    head = written(make_codes((65_536,) * 64, 1, 0), replace(header, num_samples=0))[:-21]
    path = tmp_path / "claim.ltk"
    path.write_bytes(head + struct.pack("<BHI", 1, 65_535, 65_535 * 128))
    tracemalloc.start()
    try:
        with pytest.raises(CodeFileError, match=str(65_535 * 128 + 25)):
            CodeReader(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_codes_and_bits_that_cannot_be_are_refused():
    codes = np.full((3, 1), 1000)
    data = written(codes, make_header((1024,), 3))
    message = refused(forged(data, "H", 40, 899), counts=None)
    assert re.search("code 1000 .*codebook 0, .*900 entries", message)
    data = bytearray(PACKED)
    data[80] |= 1
    assert "chunk 1" in refused(sealed(data))


def test_range_coded_payloads_that_cannot_be_are_refused():
    coder = StaticCoder(GOLDEN_COUNTS, (5, 1024))
    with pytest.raises(InputError):
        coder.decode(b"\xff" * 8, 1, 4)
    with pytest.raises(InputError):
        coder.decode(GOLDEN[59:63] + bytes(8), 1, 4)
    message = refused(forged(GOLDEN, "I", 59, 2**32 - 1))
    assert "chunk 0" in message


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_forgery_does_anything_but_be_refused_or_give_codes(data):
    """Whole files from a few random bytes: CodeFileError, or codes within their codebooks."""
    source = bytearray(data.draw(st.sampled_from([GOLDEN, PACKED])))
    edits = st.lists(st.tuples(st.integers(0, len(source) - 1), st.integers(0, 255)), max_size=6)
    for position, value in data.draw(edits):
        source[position] = value
    forgery = sealed(source) if data.draw(st.booleans()) else bytes(source)
    try:
        header, codes = read_codes(io.BytesIO(forgery), GOLDEN_COUNTS)
    except CodeFileError:
        return
    assert codes.shape == (header.num_groups, header.num_frames, len(header.codebook_sizes))
    assert (codes >= 0).all()
    assert (codes < np.array(header.codebook_sizes)).all()


# Whose codes


def test_another_models_file_is_refused():
    with pytest.raises(CodeFileError, match=f"{FINGERPRINT}.*{'f' * 16}"):
        CodeReader(io.BytesIO(GOLDEN), GOLDEN_COUNTS, expected_fingerprint="f" * 16)
    with pytest.raises(CodeFileError, match="codebook 0"):
        CodeReader(io.BytesIO(GOLDEN), GOLDEN_COUNTS + 1)
    with pytest.raises(CodeFileError, match=r"\(1, 1024\)"):
        CodeReader(io.BytesIO(GOLDEN), GOLDEN_COUNTS[:1])
    more = np.concatenate([GOLDEN_COUNTS, GOLDEN_COUNTS])  # of a model with more codebooks
    assert read_codes(io.BytesIO(GOLDEN), more)[1].tolist() == [GOLDEN_CODES]


def test_without_counts_a_range_coded_file_can_be_verified_only():
    assert read_info(io.BytesIO(GOLDEN)).header == GOLDEN_HEADER
    with pytest.raises(CodeFileError, match="counts"):
        CodeReader(io.BytesIO(GOLDEN)).chunks()
    assert read_info(Pipe(GOLDEN)) == read_info(io.BytesIO(GOLDEN), GOLDEN_COUNTS)


def test_limits_can_be_chosen():
    with pytest.raises(CodeFileError, match="max_frames=5"):
        CodeReader(io.BytesIO(PACKED), max_frames=5)
    assert CodeReader(io.BytesIO(PACKED), max_frames=6).read_all(max_codes=12).size == 12
    for source in (io.BytesIO(PACKED), Pipe(PACKED)):
        with pytest.raises(CodeFileError, match=r"\b11\b"):
            CodeReader(source).read_all(max_codes=11)


# Writing


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), np.int64), r"\(2, 3\).*\[1, t, 2\]"),
        (np.zeros((2, 2, 2), np.int64), r"\(2, 2, 2\).*\[1, t, 2\]"),
        (np.zeros(2, np.int64), r"\(2,\)"),
        (np.zeros((2, 2)), "float64"),
        (np.array([[0, 0], [0, 9]]), "code 9 .*codebook 1, .*9 entries"),
        (np.array([[-1, 0]]), "-1 .*codebook 0"),
        (np.array([[0, 2**63]], dtype=np.uint64), "9223372036854775808 .*codebook 1"),
    ],
)
def test_codes_that_do_not_fit_the_header_are_refused(codes, message, tmp_path):
    path = tmp_path / "clip.ltk"
    with pytest.raises(ValueError, match=message):
        write_codes(path, codes, make_header((5, 9), 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_fingerprint": "abc"}, "'abc'"),
        ({"model_fingerprint": "G" * 16}, "GGGG"),
        ({"codebook_sizes": ()}, "codebooks=0"),
        ({"codebook_sizes": (1,)}, r"codebook_sizes\[0\]=1"),
        ({"codebook_sizes": (65_537,)}, r"codebook_sizes\[0\]=65537"),
        ({"num_groups": 2}, "num_groups=2"),
        ({"num_channels": 2}, "1 gains .*2 channels"),
        ({"gains": (1e-50,)}, "gain 0.0"),
        ({"gains": (1e50,)}, "gain inf"),
        ({"num_samples": -1}, "num_samples=-1"),
        ({"num_samples": 7 * 441 + 1}, "num_samples=3088"),
        ({"version": 2}, "version=2"),
    ],
)
def test_headers_are_checked(changes, message):
    with pytest.raises(CodeFileError, match=message):
        replace(GOLDEN_HEADER, **changes)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (None, "counts"),
        (np.ones((2, 8), int), r"\(2, 8\)"),
        (np.ones((1, 9), int), r"\(1, 9\)"),
        (np.ones((2, 9)), "float64"),
        (np.ones((2, 9), int), "codebook 0 .*5"),
        (-make_counts((5, 9)), "codebook 0"),
    ],
)
def test_counts_are_checked(counts, message):
    with pytest.raises(ValueError, match=message):
        CodeWriter(io.BytesIO(), make_header((5, 9), entropy="static"), counts)


def test_nothing_appears_under_its_name_before_it_is_complete(tmp_path):
    path, header = tmp_path / "clip.ltk", make_header((5,), chunk_frames=1)
    path.write_text("old")
    block = np.zeros((2, 1), np.int64)

    def interrupted():
        with CodeWriter(path, header) as writer:
            writer.write(block)
            raise KeyboardInterrupt

    def unfinished():
        with CodeWriter(path, header) as writer:
            writer.write(block)

    def untrue():
        with CodeWriter(path, replace(header, num_frames=3)) as writer:
            writer.write(block)
            writer.finish(320)

    def implausible():
        with CodeWriter(path, header) as writer:
            writer.write(block)
            writer.finish(481)

    def late():
        with CodeWriter(path, header) as writer:
            writer.finish(0)
            writer.write(block)

    for attempt, error, message in [
        (interrupted, KeyboardInterrupt, None),
        (unfinished, CodeFileError, "finish"),
        (untrue, CodeFileError, "num_frames=3.* 2"),
        (implausible, CodeFileError, "num_samples=481"),
        (late, CodeFileError, "finish"),
    ]:
        with pytest.raises(error, match=message):
            attempt()
        assert [p.name for p in tmp_path.iterdir()] == ["clip.ltk"]
        assert path.read_text() == "old"
    write_codes(path, block, replace(header, num_samples=320))
    assert read_codes(path)[0].num_frames == 2


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CodeWriter, "_emit", full)
    with pytest.raises(OSError, match="No space left"):
        write_codes(tmp_path / "clip.ltk", np.zeros((1, 1), np.int64), make_header((5,), 1))
    assert not list(tmp_path.iterdir())


def test_links_stay_links_and_devices_stay_devices(tmp_path):
    target, link = tmp_path / "target.ltk", tmp_path / "link.ltk"
    link.symlink_to(target)
    header = make_header((5,), 1)
    write_codes(link, np.zeros((1, 1), np.int64), header)
    assert link.is_symlink()
    assert read_info(target).header.num_frames == 1
    assert write_codes("/dev/null", np.zeros((1, 1), np.int64), header) == target.stat().st_size
    assert Path("/dev/null").is_char_device()


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.ltk"):
        CodeReader(tmp_path / "absent.ltk")
    with pytest.raises(FileNotFoundError, match="absent"):
        write_codes(tmp_path / "absent" / "x.ltk", np.zeros((1, 1), int), make_header((5,), 1))
    (tmp_path / "empty.ltk").touch()
    with pytest.raises(CodeFileError, match=r"empty\.ltk"):
        CodeReader(tmp_path / "empty.ltk")
