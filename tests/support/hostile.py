"""What an attacker, or a broken disk, can hand to this library: a function for every way in.

Each takes bytes and reads them as one kind of input. It may succeed or raise one of `CLEAR` with a
message; everything else is a bug: another exception, a crash, a hang, gigabytes of memory. The
functions are used by tests/project/test_hostile.py (hypothesis), tests/support/fuzz/run.py
(atheris) and tests/project/test_failures.py (inputs that once did harm).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from models import RATE, make_tokenizer, tone
from safetensors.torch import save as save_tensors

from datasets_scripts.corpora import audiofolder, webdataset_shards
from datasets_scripts.dataset.manifest import read_manifest
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.sources.archives import unpack
from tokenizer.audio import open_audio
from tokenizer.cli.coding import describe
from tokenizer.codefile import CodeFileHeader, read_codes, truncate_codes, write_codes
from tokenizer.codefile.header import CRC, PREFIX, RECORD
from tokenizer.evaluation.comparison import read_comparison
from tokenizer.evaluation.comparison.specs import parse_spec
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training.checkpoint import (
    TrainingState,
    WeightAverage,
    load_checkpoint,
    make_optimizer,
)

# OSError: what the system refuses, such as a name that is too long. RecursionError is a
# RuntimeError, but "maximum recursion depth exceeded" tells nobody what to do.
CLEAR = (ValueError, RuntimeError, OSError)
UNCLEAR = (RecursionError, NotImplementedError)

SIZES = (5, 256, 300)
COUNTS = np.where(np.arange(300) < np.array(SIZES)[:, None], 1 + np.arange(300) % 7, 0)


def survives(read: Callable[[bytes], object], data: bytes) -> str | None:
    """Reads hostile bytes; returns the message of the error, or None if there was none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return outcome(lambda: read(data))[1]


def outcome(call: Callable[[], object], *also: type[Exception]) -> tuple[Any, str | None]:
    """What a call returns, or the message of the clear error that it raises; others pass."""
    try:
        return call(), None
    except UNCLEAR:
        raise
    except (*CLEAR, *also) as error:
        message = f"{type(error).__name__}: {error}"
    if not message.partition(": ")[2].strip():
        raise AssertionError(f"an error without a message: {message}")
    return None, message


@contextmanager
def folder_with(**files: bytes):
    """A temporary folder with these files; a double underscore in a name stands for a dot."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file.replace("__", ".")).write_bytes(content)
        yield Path(name)


@cache
def checkpoint() -> tuple[bytes, bytes]:
    """``config.json`` and ``model.safetensors`` of a tiny tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        make_tokenizer().save_pretrained(name)
        return tuple((Path(name) / f).read_bytes() for f in ("config.json", "model.safetensors"))


# Ways in


def read_code_file(data: bytes) -> None:
    """A file of codes, as `latok info` and `latok decode` read it, and as it is cut down."""
    read_codes(io.BytesIO(data), COUNTS, max_codes=2**20)
    truncate_codes(io.BytesIO(data), io.BytesIO(), 1, COUNTS)
    with folder_with(clip__ltk=data) as folder:
        describe(folder / "clip.ltk")


def read_sealed_code_file(data: bytes) -> None:
    """The same with all checksums made right, which an attacker can do, too."""
    read_code_file(seal(data))


def read_config(data: bytes) -> None:
    """A tokenizer's config.json beside good weights."""
    with folder_with(config__json=data, model__safetensors=checkpoint()[1]) as folder:
        LatentTokenizer.from_pretrained(folder)


def read_weights(data: bytes) -> None:
    """A tokenizer's weights beside a good config.json without a checksum of them."""
    config = json.loads(checkpoint()[0]) | {"weights_checksum": None}
    config = json.dumps(config).encode()
    with folder_with(config__json=config, model__safetensors=data) as folder:
        LatentTokenizer.from_pretrained(folder)


def read_index(data: bytes) -> None:
    """The index of weights in several files."""
    config, weights = checkpoint()
    files = {"model__safetensors__index__json": data, "part__safetensors": weights}
    with folder_with(config__json=config, **files) as folder:
        LatentTokenizer.from_pretrained(folder)


def read_audio(data: bytes) -> None:
    """An audio file of whatever kind; what comes out is finite and as long as it says."""
    source = open_audio(data, target_rate=RATE)
    total = 0
    for block in source.blocks():
        assert block.dtype == np.float32
        assert block.shape[0] == source.num_channels
        assert np.isfinite(block).all()
        total += block.shape[1]
        if total > 2**22:  # Nothing to learn from more of the same.
            return
    assert total == source.num_samples


def read_shard(data: bytes) -> None:
    """A WebDataset shard."""
    with folder_with(train__tar=data) as folder:
        for clip in webdataset_shards.CORPUS.prepare(folder, "train"):
            if hasattr(clip, "audio"):
                clip.read_bytes()


def read_packed_shard(data: bytes) -> None:
    """A compressed shard: the bytes before compression, so that mutations reach the archive."""
    with folder_with(train__tar__gz=gzip.compress(data, 1)) as folder:
        list(webdataset_shards.CORPUS.prepare(folder, "train"))


def read_metadata(kind: str) -> Callable[[bytes], None]:
    """Metadata of a folder of audio."""

    def read(data: bytes) -> None:
        with folder_with(**{f"metadata__{kind}": data, "a__wav": audio_seeds()[0]}) as folder:
            list(audiofolder.CORPUS.prepare(folder, "train"))

    return read


def read_archive(kind: str) -> Callable[[bytes], None]:
    """A corpus' archive: whatever happens, nothing lands outside of its folder."""

    def read(data: bytes) -> None:
        with folder_with(**{f"a__{kind}": data}) as folder:
            try:
                unpack(folder / f"a.{kind}", folder / "to")
            finally:
                assert sorted(path.name for path in folder.iterdir()) == [f"a.{kind}", "to"]
                assert not any(path.is_symlink() for path in folder.rglob("*"))

    return read


def read_dataset_manifest(data: bytes) -> None:
    """``manifest.json`` of a prepared dataset."""
    with folder_with(manifest__json=data) as folder:
        manifest = read_manifest(Folder(folder))
        if manifest is not None:
            for shard in manifest.shards:
                assert (folder / shard.file).resolve().is_relative_to(folder.resolve())


def read_training_state(data: bytes) -> None:
    """``state.json`` of a checkpoint of training."""
    module = torch.nn.Linear(2, 2)
    state = TrainingState(module, make_optimizer(module, 1e-3, 0.0), WeightAverage(module, 0.9))
    weights = save_tensors({k: v.clone() for k, v in module.state_dict().items()})
    files = {"module__safetensors": weights, "average__safetensors": weights}
    with folder_with(state__json=data, optimizer__safetensors=save_tensors({}), **files) as folder:
        load_checkpoint(folder, state, {"a": 1})


def read_comparison_file(data: bytes) -> None:
    """``comparison.json``."""
    with folder_with(comparison__json=data) as folder:
        read_comparison(folder)


def read_specification(data: bytes) -> None:
    """A quantizer as a user types it."""
    parse_spec(data.decode("utf-8", "replace"))


# Good inputs to start from


def seal(data: bytes) -> bytes:
    """A code file's bytes with the checksums that they should have, as far as its parts go."""
    if len(data) < PREFIX.size + CRC.size:
        return data
    size = PREFIX.unpack_from(data)[3]
    if not PREFIX.size + CRC.size <= size <= len(data):
        return data
    out, crc, place = bytearray(), 0, 0
    parts = [size - CRC.size]
    while parts[-1] >= 0:
        end = place + parts[-1]
        if end + CRC.size > len(data):
            return bytes(out) + data[place:]
        crc = zlib.crc32(data[place:end], crc)
        out += data[place:end] + CRC.pack(crc)
        place = end + CRC.size
        if place >= len(data):
            return bytes(out)
        if data[place] == 0:  # the end record
            parts.append(17)
        elif place + RECORD.size <= len(data):
            parts.append(RECORD.size + RECORD.unpack_from(data, place)[2])
        else:
            break
    return bytes(out) + data[place:]


def code_seeds() -> list[bytes]:
    """Code files, packed and static, of one and of two groups."""
    seeds = []
    for entropy, groups in (("packed", 1), ("static", 1), ("static", 2)):
        header = CodeFileHeader(
            "0123456789abcdef", RATE, 80, groups, SIZES, groups, (0.5,) * groups, entropy, 8,
            num_samples=80 * 20,
        )  # fmt: skip
        codes = np.random.default_rng(0).integers(0, SIZES, (groups, 20, 3)) // 2
        stream = io.BytesIO()
        write_codes(stream, codes, header, COUNTS)
        seeds.append(stream.getvalue())
    return seeds


@cache
def audio_seeds() -> list[bytes]:
    """Short files of all kinds."""
    seeds = []
    kinds = [
        ("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_24"),
        ("CAF", "ALAC_16"), ("W64", "PCM_16"), ("AU", "ULAW"), ("RF64", "PCM_16"),
    ]  # fmt: skip
    for kind, subtype in kinds:
        stream = io.BytesIO()
        soundfile.write(stream, tone(0.05).T, RATE, format=kind, subtype=subtype)
        seeds.append(stream.getvalue())
    return seeds


def tarred(files: dict[str, bytes]) -> bytes:
    """A plain tar archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def shard_seeds() -> list[bytes]:
    """Shards of two samples, one with a long name (a header of its own)."""
    files = {"a.wav": audio_seeds()[0], "a.json": b'{"label": "x", "n": [1]}'}
    return [tarred(files | {"b/" + 120 * "b" + ".flac": audio_seeds()[3]})]


def archive_seeds(kind: str) -> list[bytes]:
    """Archives of two files."""
    files = {"x/a.txt": b"a" * 50, "b.txt": b"b"}
    if kind == "tar":
        return [tarred(files)]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as members:
        for name, content in files.items():
            members.writestr(name, content)
    return [stream.getvalue()]


def metadata_seeds(kind: str) -> list[bytes]:
    """Metadata of one file in a format."""
    rows = [{"file_name": "a.wav", "label": "x", "caption": "a tone, high"}]
    if kind == "jsonl":
        return [json.dumps(rows[0]).encode()]
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        return [text.getvalue().encode()]
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return [stream.getvalue()]


def manifest_seed() -> bytes:
    """A manifest of one shard."""
    return json.dumps({
        "corpus": "audiofolder", "root": "x", "tokenizer": None, "fingerprint": "0" * 16,
        "codes_fingerprint": None, "sampling_rate": 8000, "hop_length": 80, "frame_rate": 100.0,
        "latent_dim": 8, "channels_coded_jointly": 1, "codebook_sizes": [16],
        "options": {"codes": True, "latents": False}, "complete": True, "splits": ["train"],
        "shards": [{"file": "data/train-00000.parquet", "split": "train", "index": 0, "clips": 1,
                    "rows": 1, "bytes": 1, "sha256": "0", "clip_ids": "0", "failures": 0}],
        "failures": [], "format_version": 1,
    }).encode()  # fmt: skip


# Name: the way in, and good inputs to start from.
WAYS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "code-file": (read_code_file, code_seeds),
    "sealed-code-file": (read_sealed_code_file, code_seeds),
    "config": (read_config, lambda: [checkpoint()[0]]),
    "weights": (read_weights, lambda: [checkpoint()[1][:20000]]),
    "index": (read_index, lambda: [b'{"weight_map": {"latents_mean": "part.safetensors"}}']),
    "audio": (read_audio, audio_seeds),
    "shard": (read_shard, shard_seeds),
    "packed-shard": (read_packed_shard, shard_seeds),
    "csv": (read_metadata("csv"), lambda: metadata_seeds("csv")),
    "jsonl": (read_metadata("jsonl"), lambda: metadata_seeds("jsonl")),
    "parquet": (read_metadata("parquet"), lambda: metadata_seeds("parquet")),
    "tar": (read_archive("tar"), lambda: archive_seeds("tar")),
    "zip": (read_archive("zip"), lambda: archive_seeds("zip")),
    "manifest": (read_dataset_manifest, lambda: [manifest_seed()]),
    "training-state": (
        read_training_state,
        lambda: [b'{"step": 3, "config": {"a": 1}, "checksums": {}}'],
    ),
    "comparison": (read_comparison_file, lambda: [b'{"format_version": 1, "entries": []}']),
    "specification": (read_specification, lambda: [b"rvq:standardization=channel,beam_width=4"]),
}


def mutated(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Bytes after some edits: (place, how many bytes to take out, what to put in)."""
    out = bytearray(data)
    for place, taken, put in edits:
        start = place % (len(out) + 1)
        out[start : start + taken] = put
    return bytes(out)


# Values that parsers stumble over.
EVIL = [
    b"", b"\0", b"\xff", b"\x7f", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f", b"\0\0\0\x80", struct.pack("<Q", 2**60), struct.pack("<q", -1),
    b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"[]", b"{}", b'"', b"\\ud800", b"../",
    b"/etc/x", b"9" * 30, b"99999999999", b"\r\n", b",", b"[" * 2000, b"0" * 11, b"77777777777",
]  # fmt: skip
