"""Bits of codes under a language model and under a static entropy code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from datasets_scripts import CodesCollator
from generative.language_model.codec_lm import CodecLM
from tokenizer.errors import InputError

# Frames of a window if the model has no limit.
DEFAULT_WINDOW = 1024


def unigram_bits(
    rows: Iterable[Mapping[str, Any]], codebook_sizes: Sequence[int]
) -> list[Float[np.ndarray, " S"]]:
    """Bits of every code of each codebook under static tables fitted to rows.

    Every count starts at one, as in the tables of code files.
    """
    counts = [np.ones(size) for size in codebook_sizes]
    num_rows = 0
    for row in rows:
        num_rows += 1
        codes = np.asarray(row["codes"])
        for k, size in enumerate(codebook_sizes):
            counts[k] += np.bincount(codes[:, k], minlength=size)
    if num_rows == 0:
        raise InputError("There are no rows to fit the static tables to.")
    return [-np.log2(count / count.sum()) for count in counts]


@torch.no_grad()
def language_model_bits(
    model: CodecLM,
    train_rows: Iterable[Mapping[str, Any]],
    held_out_rows: Sequence[Mapping[str, Any]],
    *,
    frame_rate: float | int,
    joint_channels: int = 1,
    conditional: bool = True,
    batch_size: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Bits of held-out codes under the model and under tables fitted to the training rows.

    Long rows are cut into windows of the model's ``context_frames``, each scored without the
    previous ones; a sliding window would need fewer bits. ``frame_rate`` is that of one group of
    channels.

    The result has ``lm``, ``static`` and ``nominal``, each with ``bits_per_code``,
    ``bits_per_second`` (of a group of channels) and ``per_codebook`` bits per code; ``saving``, the
    share of the static code's bits that the model saves; ``codes``, how many were scored.
    """
    sizes = model.pattern.codebook_sizes
    tables = unigram_bits(train_rows, sizes)
    lm, static = np.zeros(len(sizes)), np.zeros(len(sizes))
    was_training = model.training
    model.eval()
    window = model.config.context_frames or DEFAULT_WINDOW
    windows = list(_windows(held_out_rows, window, joint_channels))
    # Windows of equal length together: no padding is computed.
    windows.sort(key=lambda row: -len(row["codes"]))
    collate = CodesCollator(labels=model.labels)
    for first in tqdm(range(0, len(windows), batch_size), disable=not progress, unit="batch"):
        part = [
            _conditioned(row, model, conditional) for row in windows[first : first + batch_size]
        ]
        batch = collate(part)
        batch |= {name: batch[name].to(model.device) for name in ("codes", "mask")}
        lm += model.code_nats(batch).codes.double().cpu().numpy() / math.log(2)
        for row in part:
            static += [
                table[codes].sum() for table, codes in zip(tables, row["codes"].T, strict=True)
            ]
    model.train(was_training)
    count = sum(len(row["codes"]) for row in windows)
    if not count:
        raise InputError("There are no held-out rows to score.")
    nominal = count * np.log2(np.array(sizes))

    def report(bits: np.ndarray) -> dict[str, Any]:
        return {
            "bits_per_code": float(bits.sum() / count / len(sizes)),
            "bits_per_second": float(bits.sum() / count * frame_rate),
            "per_codebook": (bits / count).tolist(),
        }

    return {
        "lm": report(lm),
        "static": report(static),
        "nominal": report(nominal),
        "saving": float(1 - lm.sum() / static.sum()),
        "codes": count * len(sizes),
        "conditional": conditional,
    }


def _windows(
    rows: Iterable[Mapping[str, Any]], size: int, joint_channels: int
) -> Iterator[dict[str, Any]]:
    """Rows of at most ``size`` frames of one group of channels; their ends are not scored."""
    for row in rows:
        codes = np.asarray(row["codes"]).astype(np.int64)
        groups = -(-int(row.get("num_channels") or 1) // joint_channels)
        for group in np.split(codes, groups):
            for first in range(0, len(group), size):
                piece = {"codes": group[first : first + size], "last": False}
                yield piece | {name: row.get(name) for name in ("label", "caption")}


def _conditioned(row: dict[str, Any], model: CodecLM, conditional: bool) -> dict[str, Any]:
    """A row with the codebooks and conditions that the model knows."""
    label = row["label"] if conditional and row["label"] in model.labels else None
    has_text = conditional and model.config.text_encoder is not None
    codes = row["codes"][:, : model.num_codebooks]
    return row | {"codes": codes, "label": label, "caption": row["caption"] if has_text else None}
