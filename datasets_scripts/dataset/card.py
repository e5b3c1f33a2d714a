"""The dataset card: a README.md that people read and `load_dataset` finds the splits in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets_scripts.dataset.manifest import MANIFEST, STATISTICS, Manifest
from datasets_scripts.dataset.shards import DATA
from datasets_scripts.sources.corpus import CorpusInfo

CARD = "README.md"
_MAX_FAILURES = 20

# The hub's size categories: rows of at most three digits, of four, ...
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


def make_card(info: CorpusInfo, manifest: Manifest, statistics: Mapping[str, Any]) -> str:
    """The card as Markdown with a YAML header; ``statistics`` as ``statistics.json`` has them."""
    o, name, digits = manifest.options, manifest.tokenizer, len(str(statistics["rows"]))
    sizes = ", ".join(map(str, sorted(set(manifest.codebook_sizes))))
    codes = f"codes of {len(manifest.codebook_sizes)} codebooks with {sizes} entries"
    latents = f"continuous latents of {manifest.latent_dim} dimensions"
    files, counts, rows = [], [], []
    for split in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == split]
        part, quoted = statistics["splits"][split], _quoted(split)
        bits = "" if part["bits_per_code"] is None else f"{part['bits_per_code']:.2f}"
        files += [f"  - split: {quoted}", f"    path: {_quoted(f'{DATA}/{split}-*.parquet')}"]
        counts += [
            f"  - name: {quoted}",
            f"    num_bytes: {sum(shard.bytes for shard in shards)}",
            f"    num_examples: {sum(shard.rows for shard in shards)}",
        ]
        rows.append(f"| {split} | {part['rows']} | {part['hours']:.2f} | {bits} |")
    row = "A row is a clip"
    if o["segment_seconds"] is not None:
        row = f"A row is a segment of {o['segment_seconds']:g} s, or what is left of a clip"
    template = Path(__file__).with_name("card_template.txt").read_text(encoding="utf-8")
    return template.format(
        info=info,
        manifest=manifest,
        pretty_name=_quoted(info.title + ", as tokens"),
        license_name=_quoted(info.licence),
        size=_SIZES[max(digits - 3, 0)] if digits < 10 else "n>1B",
        files="\n".join(files),
        counts="\n".join(counts),
        contents=" and ".join([codes] * o["codes"] + [latents] * o["latents"]),
        tokenizer="the model bundled with latent-tokenizer" if name is None else f"`{name}`",
        row=row,
        no_codes="" if o["codes"] else " (not prepared: null)",
        no_latents="" if o["latents"] else " (not prepared: null)",
        label=info.label_kind or "null",
        caption=info.caption_kind or "null",
        first_split=_quoted(manifest.splits[0]),
        load="" if name is None else _quoted(name),
        kind="codes" if o["codes"] else "latents",
        statistics="\n".join(rows),
        STATISTICS=STATISTICS,
        MANIFEST=MANIFEST,
        failures=_failures(manifest),
        citation=f"\n```bibtex\n{info.citation.strip()}\n```\n" if info.citation else "",
    )


def _quoted(text: str) -> str:
    # JSON strings are YAML strings. Quoted, for a split may be called "no" or "1".
    return json.dumps(text, ensure_ascii=False)


def _failures(manifest: Manifest) -> str:
    if not manifest.failures:
        return ""
    lines = [f"- {one.split}, {one.id}: {one.reason}" for one in manifest.failures[:_MAX_FAILURES]]
    if (more := len(manifest.failures) - len(lines)) > 0:
        lines.append(f"- and {more} more, in `{MANIFEST}`")
    return "\n".join([f"## Missing: {len(manifest.failures)} clips", "", *lines, "", ""])
