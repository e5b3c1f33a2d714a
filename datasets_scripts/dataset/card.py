"""The dataset card: a README.md that people read and `load_dataset` finds the splits in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datasets_scripts.dataset.manifest import MANIFEST, STATISTICS, Manifest
from datasets_scripts.dataset.shards import DATA
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.sources.corpus import CorpusInfo

CARD = "README.md"
_MAX_FAILURES = 20

# Upper ends of the hub's size categories.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


def write_card(
    folder: Folder, info: CorpusInfo, manifest: Manifest, statistics: Mapping[str, Any]
) -> None:
    """Writes, or replaces, the card of a prepared dataset."""
    folder.write(CARD, make_card(info, manifest, statistics))


def make_card(info: CorpusInfo, manifest: Manifest, statistics: Mapping[str, Any]) -> str:
    """The card as Markdown with a YAML header; ``statistics`` as ``statistics.json`` has them."""
    return "\n".join(
        [
            "---",
            *_header(info, manifest, statistics),
            "---",
            "",
            f"# {info.title}, as tokens",
            "",
            *_contents(info, manifest),
            "",
            *_use(manifest),
            "",
            *_statistics(manifest, statistics),
            "",
            *_failures(manifest),
            "## Source and licence",
            "",
            f"{info.title}: {info.homepage}. Licence of the audio: {info.licence}. The licence of"
            " these tokens follows from it.",
            "",
            *(["```bibtex", info.citation.strip(), "```", ""] if info.citation else []),
        ]
    )


def _header(info: CorpusInfo, manifest: Manifest, statistics: Mapping[str, Any]) -> list[str]:
    lines = [
        f"pretty_name: {_quoted(info.title + ', as tokens')}",
        "license: other",
        f"license_name: {_quoted(info.licence)}",
        "tags:",
        "- audio",
        "- latent-tokenizer",
        "size_categories:",
        f"- {_size(statistics['rows'])}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    # Quoted: a split may be called "no" or "1".
    for split in manifest.splits:
        lines += [
            f"  - split: {_quoted(split)}",
            f"    path: {_quoted(f'{DATA}/{split}-*.parquet')}",
        ]
    lines += ["dataset_info:", "- config_name: default", "  splits:"]
    for split in manifest.splits:
        shards = [shard for shard in manifest.shards if shard.split == split]
        lines += [
            f"  - name: {_quoted(split)}",
            f"    num_bytes: {sum(shard.bytes for shard in shards)}",
            f"    num_examples: {sum(shard.rows for shard in shards)}",
        ]
    return lines


def _quoted(text: str) -> str:
    # JSON strings are YAML strings.
    return json.dumps(text, ensure_ascii=False)


def _size(rows: int) -> str:
    return next((name for end, name in _SIZES if rows < end), "n>1B")


def _contents(info: CorpusInfo, manifest: Manifest) -> list[str]:
    o = manifest.options
    kinds = []
    if o["codes"]:
        sizes = sorted(set(manifest.codebook_sizes))
        kinds.append(
            f"codes of {len(manifest.codebook_sizes)} codebooks with {', '.join(map(str, sizes))}"
            " entries"
        )
    if o["latents"]:
        kinds.append(f"continuous latents of {manifest.latent_dim} dimensions")
    whole = "A row is a clip"
    if o["segment_seconds"] is not None:
        whole = f"A row is a segment of {o['segment_seconds']:g} s, or what is left of a clip"
    name = (
        "the model bundled with latent-tokenizer"
        if manifest.tokenizer is None
        else (f"`{manifest.tokenizer}`")
    )
    return [
        f"{info.title} as {' and '.join(kinds)}, {manifest.frame_rate:.2f} frames a second, made by"
        f" {name} (fingerprint `{manifest.fingerprint}`). {whole}.",
        "",
        "| column | |",
        "|---|---|",
        "| `id` | unique in its split |",
        "| `source_id`, `start` | the clip of the corpus, and the row's first sample in it |",
        f"| `codes` | {manifest.code_dtype} `[T, K]`{_absent(o['codes'])} |",
        f"| `latents` | float16 `[T, D]`{_absent(o['latents'])} |",
        "| `gain` | root mean square of each channel, which the decoder multiplies by |",
        f"| `num_samples`, `num_channels` | of the audio, at {manifest.sampling_rate} Hz |",
        f"| `label`, `caption` | {info.label_kind or 'null'}; {info.caption_kind or 'null'} |",
        "| `metadata` | what else the corpus says, as JSON |",
        "| `fingerprint` | of the tokenizer |",
    ]


def _absent(present: bool) -> str:
    return "" if present else " (not prepared: null)"


def _use(manifest: Manifest) -> list[str]:
    kind = "codes" if manifest.options["codes"] else "latents"
    load = "" if manifest.tokenizer is None else _quoted(manifest.tokenizer)
    return [
        "```python",
        "from datasets import load_dataset",
        "from tokenizer import load_tokenizer",
        "",
        f'ds = load_dataset("THIS_FOLDER_OR_REPOSITORY", split={_quoted(manifest.splits[0])})',
        f"audio = load_tokenizer({load}).decode_{kind}(ds[0])  # float32 [C, N]",
        "```",
    ]


def _statistics(manifest: Manifest, statistics: Mapping[str, Any]) -> list[str]:
    lines = ["## Statistics", "", "| split | rows | hours | bits per code |", "|---|---|---|---|"]
    for split in manifest.splits:
        part = statistics["splits"][split]
        bits = "" if part["bits_per_code"] is None else f"{part['bits_per_code']:.2f}"
        lines.append(f"| {split} | {part['rows']} | {part['hours']:.2f} | {bits} |")
    return [
        *lines,
        "",
        f"More is in `{STATISTICS}` (use of each codebook; `latents_mean` and `latents_std`) and"
        f" `{MANIFEST}` (checksums). `python -m datasets_scripts verify` checks both.",
    ]


def _failures(manifest: Manifest) -> list[str]:
    if not manifest.failures:
        return []
    shown = manifest.failures[:_MAX_FAILURES]
    more = len(manifest.failures) - len(shown)
    return [
        f"## Missing: {len(manifest.failures)} clips",
        "",
        *(f"- {failure.split}, {failure.id}: {failure.reason}" for failure in shown),
        *([f"- and {more} more, in `{MANIFEST}`"] if more else []),
        "",
    ]
