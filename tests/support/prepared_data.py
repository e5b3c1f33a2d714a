"""A prepared dataset of tones, written without `datasets_scripts`."""

from __future__ import annotations

import json

import pyarrow.parquet as parquet
from datasets import Array2D, Dataset, Features, List, Value
from models import CODEBOOKS, RATE, tone

LABELS = ("birds", "rain")


def make_rows(tokenizer, clips: int = 10, segments: int = 2, seconds: float = 0.4) -> list[dict]:
    """Rows of some clips; a fifth has no label."""
    rows = []
    for clip in range(clips):
        for segment in range(segments):
            wave = tone(seconds + 0.05 * (clip % 3), seed=10 * clip + segment)
            row = tokenizer.encode_latents(wave, sampling_rate=RATE)
            row |= tokenizer.latents_to_codes(row)
            label = None if clip % 5 == 4 else LABELS[clip % 2]
            row |= {"id": f"{clip}-{segment}", "source_id": str(clip), "label": label}
            rows.append(row | {"start": segment, "caption": f"clip {clip}", "metadata": None})
    return rows


def write_prepared(folder, tokenizer, rows=None, *, columns=("codes", "latents"), split="train"):
    """Writes rows as `datasets_scripts` would."""
    rows = make_rows(tokenizer) if rows is None else rows
    text, number, nothing = Value("string"), Value("int64"), Value("null")
    frames = Array2D((None, tokenizer.latent_dim), "float16")
    features = Features(
        {
            "id": text,
            "source_id": text,
            "start": number,
            "codes": Array2D((None, CODEBOOKS), "int16") if "codes" in columns else nothing,
            "latents": frames if "latents" in columns else nothing,
            "gain": List(Value("float32")),
            "num_samples": number,
            "num_channels": number,
            "label": text,
            "caption": text,
            "metadata": text,
            "fingerprint": text,
        }
    )
    kept = [
        {
            name: row.get(name) if name not in ("codes", "latents") or name in columns else None
            for name in features
        }
        for row in rows
    ]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_list(kept, features=features)
    dataset.to_parquet(str(folder / "data" / f"{split}-00000.parquet"))
    write_manifest(folder, tokenizer, columns)
    return folder


def write_manifest(folder, tokenizer, columns=("codes", "latents")):
    """Writes a manifest of the shards that are there."""
    sizes = tokenizer.codebook_sizes if "codes" in columns else ()
    shards = []
    for path in sorted((folder / "data").glob("*.parquet")):
        rows = parquet.read_metadata(path).num_rows
        record = {"file": f"data/{path.name}", "split": path.name.partition("-")[0], "index": 0}
        counts = {"clips": rows, "rows": rows, "bytes": path.stat().st_size, "failures": 0}
        shards.append(record | counts | {"sha256": "", "clip_ids": ""})
    manifest = {
        "format_version": 1,
        "corpus": "audiofolder",
        "root": "tones",
        "tokenizer": None,
        "fingerprint": tokenizer.fingerprint,
        "codes_fingerprint": tokenizer.codes_fingerprint,
        "sampling_rate": tokenizer.sampling_rate,
        "hop_length": tokenizer.hop_length,
        "frame_rate": tokenizer.frame_rate,
        "latent_dim": tokenizer.latent_dim,
        "channels_coded_jointly": tokenizer.autoencoder.num_channels,
        "codebook_sizes": list(sizes),
        "options": {name: name in columns for name in ("codes", "latents")},
        "complete": True,
        "splits": sorted({shard["split"] for shard in shards}),
        "shards": shards,
        "failures": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
