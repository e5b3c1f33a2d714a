"""Writes tests/data/failures/: ``python tests/support/make_failures.py``.

Files that fuzzers found are added by hand.
"""

import io
import json
import tarfile
from pathlib import Path

from hostile import checkpoint, tarred

ROOT = Path(__file__).parents[1] / "data" / "failures"


def config(**changes: object) -> bytes:
    """A good config.json with some values changed; ``a__b`` is b inside of a."""
    value = json.loads(checkpoint()[0])
    value["weights_checksum"] = None
    for path, new in changes.items():
        *above, last = path.split("__")
        place = value
        for key in above:
            place = place[key]
        place[last] = new
    return json.dumps(value, sort_keys=True).encode()


def sparse_shard() -> bytes:
    """A sparse member that claims 2^40 bytes of nothing."""
    archive = bytearray(tarred({"a.wav": b""}))
    archive[156:157] = b"S"  # its type: GNU sparse
    size = b"%011o\0" % 2**32
    archive[386:482] = bytes(96)
    archive[386 : 386 + 12] = b"%011o\0" % (2**32 - 1)  # where its only piece begins
    archive[398 : 398 + 12] = b"%011o\0" % 0
    archive[483 : 483 + 12] = size
    return short(_summed(archive))


def _summed(archive: bytearray) -> bytes:
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    return bytes(archive)


def linked() -> bytes:
    """A link inside of its folder, as chains of links begin that lead out of it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("a")
        info.type, info.linkname = tarfile.SYMTYPE, "b"
        tar.addfile(info)
    return short(stream.getvalue())


def short(archive: bytes) -> bytes:
    """An archive without the zeros that fill it up, but for the mark of its end."""
    used = archive.rstrip(b"\0")
    return used.ljust(-(-len(used) // 512) * 512, b"\0") + bytes(1024)


FAILURES = {
    # One took 10^5 layers' time, one all memory, one asked the hub for code, others ended in
    # errors of Python's own.
    "config/refused-depth": config(autoencoder__encoder_depth=10**8),
    "config/refused-codebooks": config(quantizer__num_codebooks=10**7),
    "config/refused-beam": config(quantizer__beam_width=10**9),
    "config/refused-dimensions": config(autoencoder__latent_dim=2**40),
    "config/refused-width": config(autoencoder__encoder_width=2**20),
    "config/refused-rate": config(autoencoder__sampling_rate=2**70),
    "config/refused-kind": config(autoencoder__kind=["lapped"]),
    "config/refused-version": config(format_version="1"),
    "config/refused-other-model": config(model_type="bert"),
    "config/refused-list": b"[]",
    "config/refused-deep": b"[" * 5000,
    "config/harmless-kernel": config(attn_implementation="somebody/kernel"),
    "config/harmless-classes": config(num_labels=10**9),
    "config/harmless-quantization": config(quantization_config={"quant_method": "bitsandbytes"}),
    "config/harmless-dtype": config(dtype="evil"),
    "weights/refused-cut": checkpoint()[1][:1000],
    "weights/refused-header": (2**60).to_bytes(8, "little") + b"{}",
    "index/refused-elsewhere": b'{"weight_map": {"latents_mean": "../model.safetensors"}}',
    # These ended the preparation of a dataset, each time that it was started.
    "shard/harmless-surrogate": short(tarred({"a.wav": b"x", "a.json": b'{"label": "\\ud800"}'})),
    "shard/harmless-deep": short(tarred({"a.wav": b"x", "a.json": b"[" * 4000})),
    "shard/harmless-sparse": sparse_shard(),
    "jsonl/harmless-surrogate": b'{"file_name": "a.wav", "caption": "\\udfff"}',
    "jsonl/refused-deep": b"[" * 4000,
    "parquet/refused-thrift": b"PAR1" + bytes(20) + b"\x10\0\0\0PAR1",
    "tar/refused-link": linked(),
    "manifest/refused-elsewhere": None,
    "training-state/refused-cut": b'{"step": 3, "conf',
    "training-state/refused-list": b"[]",
    "training-state/refused-checksum": json.dumps(
        {"step": 1, "config": {"a": 1}, "checksums": {"module": 1}}
    ).encode(),
    "comparison/refused-list": b"[]",
    "specification/harmless-deep": b"rvq:standardization=" + b"[" * 2000,
}


def main() -> None:
    """Writes the files."""
    from hostile import manifest_seed

    elsewhere = manifest_seed().replace(b"data/train-00000.parquet", b"data/../../x-0.parquet")
    for name, content in FAILURES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(elsewhere if content is None else content)


if __name__ == "__main__":
    main()
