"""Bits of codes under a language model and under a static entropy code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from generative.language_model.codec_lm import CodecLM
from tokenizer.errors import InputError

# Frames of a window if the model has no limit.
DEFAULT_WINDOW = 1024


def unigram_bits(
    rows: Iterable[Mapping[str, Any]], codebook_sizes: Sequence[int]
) -> list[Float[np.ndarray, " S"]]:
    """Bits of every code of each codebook under static tables fitted to rows.

    Every count starts at one, as in the tables of code files.

    Raises:
        ValueError: If there are no rows.
    """
    counts = [np.ones(size) for size in codebook_sizes]
    num_rows = 0
    for row in rows:
        codes = np.asarray(row["codes"])
        num_rows += 1
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
    """Bits of held-out codes under the model and under static tables fitted to the training rows.

    Long rows are cut into windows of the model's ``context_frames``, each scored without the
    previous ones. A sliding window would need fewer bits.

    Args:
        model: Put into evaluation mode while it scores.
        train_rows: Rows with ``codes``, for the static tables.
        held_out_rows: Rows with ``codes``, ``label``, ``caption``.
        frame_rate: Frames per second, of each group of channels.
        joint_channels: Channels that the tokenizer codes jointly.
        conditional: Whether the model gets labels and captions.
        batch_size: Windows scored together.
        progress: Whether to show a bar.

    Returns:
        ``lm``, ``static`` and ``nominal``, each with ``bits_per_code``, ``bits_per_second`` (of a
        group of channels) and ``per_codebook`` bits per code; ``saving``, the share of the static
        code's bits that the model saves; ``codes``, how many were scored.

    Raises:
        ValueError: If there are no rows.
    """
    sizes = model.pattern.codebook_sizes
    tables = unigram_bits(train_rows, sizes)
    lm, static = np.zeros(len(sizes)), np.zeros(len(sizes))
    count = 0
    was_training = model.training
    model.eval()
    window = model.config.context_frames or DEFAULT_WINDOW
    windows = list(_windows(held_out_rows, window, joint_channels))
    # Windows of equal length together: no padding is computed.
    windows.sort(key=lambda item: -len(item[0]))
    for first in tqdm(range(0, len(windows), batch_size), disable=not progress, unit="batch"):
        part = windows[first : first + batch_size]
        codes = [np.asarray(item[:, : len(sizes)]) for item, _ in part]
        batch = _collate(codes, [row for _, row in part], model, conditional)
        lm += model.code_nats(batch).codes.double().cpu().numpy() / math.log(2)
        for item in codes:
            count += len(item)
            static += [table[item[:, k]].sum() for k, table in enumerate(tables)]
    model.train(was_training)
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
) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
    for row in rows:
        codes = np.asarray(row["codes"]).astype(np.int64)
        groups = -(-int(row.get("num_channels") or 1) // joint_channels)
        for group in np.split(codes, groups):
            for first in range(0, len(group), size):
                yield group[first : first + size], row


def _collate(
    codes: list[np.ndarray], rows: list[Mapping[str, Any]], model: CodecLM, conditional: bool
) -> dict[str, Any]:
    lengths = torch.tensor([len(item) for item in codes])
    labels, captions = [-1] * len(rows), [None] * len(rows)
    if conditional:
        names = model.labels
        labels = [names.index(r["label"]) if r.get("label") in names else -1 for r in rows]
        if model.config.text_encoder is not None:
            captions = [row.get("caption") for row in rows]
    tensors = [torch.from_numpy(item) for item in codes]
    padded = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    return {
        "codes": padded.to(model.device),
        "mask": (torch.arange(int(lengths.max())) < lengths[:, None]).to(model.device),
        "label": torch.tensor(labels),
        "caption": captions,
        # Ends are not codes.
        "ended": torch.zeros(len(rows), dtype=torch.bool),
    }
