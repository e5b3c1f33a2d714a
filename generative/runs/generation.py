"""Generation of audio by a trained model: requests in seconds, rows, files, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.protocol import (
    CodeSampling,
    DiffusionSampling,
    GenerationRequest,
    TokenRow,
    kept_frames,
    num_samples_of,
)
from tokenizer import LatentTokenizer, write_audio
from tokenizer.errors import InputError
from tokenizer.evaluation.report.pictures import plot_spectrogram
from tokenizer.saving import write_json, writing


@dataclass(frozen=True)
class GeneratedClip:
    """A generated row and its audio.

    Attributes:
        row: Codes or latents, as the tokenizer decodes them.
        audio: Float32 ``[C, N]``.
        label: The requested class, or None.
        caption: The requested text, or None.
    """

    row: TokenRow
    audio: Float[np.ndarray, "C N"]
    label: str | None
    caption: str | None


def make_request(
    tokenizer: LatentTokenizer,
    seconds: float | int,
    *,
    labels: Sequence[str | None] = (None,),
    captions: Sequence[str | None] = (),
    prompt: Any = None,
    keep_seconds: Sequence[tuple[float | int, float | int]] = (),
    sampling_rate: int | None = None,
    n_codebooks: int | None = None,
    guidance_scale: float | int = 1.0,
    codes: CodeSampling | None = None,
    diffusion: DiffusionSampling | None = None,
) -> GenerationRequest:
    """Makes a request for clips of so many seconds, a prompt included.

    ``prompt`` is audio (a path, array, ...) that every clip begins with, at ``sampling_rate`` Hz if
    it is a bare array. The clips have as many channels; a tokenizer that codes each channel by
    itself lets the model continue each by itself. ``n_codebooks`` says how many codebooks a
    language model has, and is None for diffusion models. These can also keep parts of a prompt,
    ``keep_seconds`` (from, to), and generate the rest. Other arguments are the attributes of
    `GenerationRequest`.

    Raises:
        ValueError: If the length is not a positive number of at most a day, or the prompt has
            several such channels and each could end elsewhere (``codes.stop``).
    """
    num_samples = num_samples_of(seconds, tokenizer.sampling_rate)
    request = GenerationRequest(
        num_frames=tokenizer.autoencoder.num_frames(num_samples),
        num_samples=num_samples,
        num_channels=tokenizer.autoencoder.num_channels,
        labels=tuple(labels),
        captions=tuple(captions),
        guidance_scale=guidance_scale,
        codes=codes or CodeSampling(),
        diffusion=diffusion or DiffusionSampling(),
    )
    if prompt is None:
        return request
    channels, rows = encode_prompt(tokenizer, prompt, sampling_rate, n_codebooks)
    if len(rows) > 1 and request.codes.stop:
        raise InputError(
            f"The prompt has {channels} channels, and each would end elsewhere: leave stop out, or"
            " give a prompt of one channel."
        )
    if keep_seconds:
        keep = kept_frames(keep_seconds, len(rows[0]["latents"]), tokenizer.frame_rate)
        rows = [row | {"keep": keep} for row in rows]
    return replace(
        request,
        clip_channels=max(channels, request.num_channels),
        labels=tuple(label for label in request.labels for _ in rows),
        captions=tuple(text for text in request.captions for _ in rows),
        prompts=tuple(rows) * request.batch_size,
    )


def encode_prompt(
    tokenizer: LatentTokenizer, audio: Any, sampling_rate: int | None, n_codebooks: int | None
) -> tuple[int, list[TokenRow]]:
    """Encodes the whole frames of a prompt as latents and, for ``n_codebooks``, as codes.

    Returns its number of channels, and a row for each group of channels that is coded jointly.
    """
    row = tokenizer.encode_latents(audio, sampling_rate=sampling_rate)
    channels, joint = row["num_channels"], tokenizer.autoencoder.num_channels
    # The last frame may contain silence from behind the end, which must not be continued.
    usable = row["num_samples"] // tokenizer.hop_length
    if usable < 1:
        raise InputError(f"The prompt has {row['num_samples']} samples: that is no whole frame.")
    columns = {"latents": row["latents"]}
    if n_codebooks is not None:
        columns["codes"] = tokenizer.latents_to_codes(row, n_codebooks=n_codebooks)["codes"]
    firsts = range(0, channels, joint)
    tables = {
        name: values.reshape(len(firsts), -1, values.shape[-1])[:, :usable]
        for name, values in columns.items()
    }
    rows = []
    for index, first in enumerate(firsts):
        group = {name: table[index] for name, table in tables.items()}
        rows.append(group | {"gain": row["gain"][first : first + joint]})
    return channels, rows


def join_groups(rows: Sequence[TokenRow], request: GenerationRequest) -> TokenRow:
    """The row of a clip whose groups of channels are items of their own."""
    if len(rows) == 1:
        return rows[0]
    channels = request.clip_channels
    joined = rows[0] | {"num_channels": channels}
    joined["gain"] = [level for row in rows for level in row["gain"]][:channels]
    name = "codes" if "codes" in joined else "latents"
    return joined | {name: np.concatenate([row[name] for row in rows])}


def decode(
    tokenizer: LatentTokenizer, row: TokenRow, snap_codebooks: int | None = None
) -> Float[np.ndarray, "C N"]:
    """Decodes a generated row: codes by the decoder for codes, latents by the continuous one.

    With ``snap_codebooks`` latents are first quantized to that many codebooks.
    """
    if "codes" in row:
        return tokenizer.decode_codes(row)
    if snap_codebooks is None:
        return tokenizer.decode_latents(row)
    return tokenizer.decode_codes(tokenizer.latents_to_codes(row, n_codebooks=snap_codebooks))


def generate(
    model: Any,
    tokenizer: LatentTokenizer,
    request: GenerationRequest,
    *,
    seed: int = 0,
    snap_codebooks: int | None = None,
    batch_size: int = 8,
) -> Iterator[GeneratedClip]:
    """Yields a clip for every label of a request, made by a `GenerativeModel`.

    ``batch_size`` clips are generated together; the same seed and batch size give the same clips.
    For ``snap_codebooks`` see `decode`.
    """
    for row, label, caption in generate_rows(model, request, seed=seed, batch_size=batch_size):
        yield GeneratedClip(row, decode(tokenizer, row, snap_codebooks), label, caption)


def generate_rows(
    model: Any, request: GenerationRequest, *, seed: int = 0, batch_size: int = 8
) -> Iterator[tuple[TokenRow, str | None, str | None]]:
    """Yields the row of each clip with its requested label and caption; see `generate`."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: it must be at least 1.")
    groups = request.groups
    for first in range(0, request.batch_size, batch_size * groups):
        items = slice(first, first + batch_size * groups)
        part = replace(
            request,
            labels=tuple(request.labels[items]),
            captions=tuple(request.captions[items]),
            prompts=tuple(request.prompts[items]),
        )
        # torch takes seeds of 64 bits, which the product exceeds for a time in nanoseconds.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + first) % 2**64)
        rows = model.generate_rows(part, generator)
        captions = part.captions or [None] * len(rows)
        for i in range(0, len(rows), groups):
            yield join_groups(rows[i : i + groups], part), part.labels[i], captions[i]


def save_clips(
    clips: Iterator[GeneratedClip],
    folder: Path,
    sampling_rate: int,
    description: dict[str, Any] | None = None,
    pictures: bool = True,
) -> list[dict[str, Any]]:
    """Writes each clip as WAV and, with ``pictures``, PNG, and a ``samples.json`` about them.

    Each clip is written before the next one is taken. Returns the entries of ``samples.json``,
    which also holds the ``description``.
    """
    entries: list[dict[str, Any]] = []
    for index, clip in enumerate(clips):
        # Only now: a request that fails leaves no empty folder.
        folder.mkdir(parents=True, exist_ok=True)
        label = "".join(c if c.isalnum() else "-" for c in clip.label or "")[:40]
        name = f"{index:03d}-{label}" if label else f"{index:03d}"
        write_audio(folder / f"{name}.wav", clip.audio, sampling_rate)
        if pictures:
            _save_picture(folder / f"{name}.png", clip, sampling_rate)
        entries.append(
            {
                "audio": f"{name}.wav",
                "picture": f"{name}.png" if pictures else None,
                "label": clip.label,
                "caption": clip.caption,
                "seconds": clip.audio.shape[-1] / sampling_rate,
            }
        )
    content = {"sampling_rate": sampling_rate, **(description or {}), "samples": entries}
    write_json(folder / "samples.json", content)
    return entries


def _save_picture(path: Path, clip: GeneratedClip, sampling_rate: int) -> None:
    """Writes a PNG of a clip's spectrogram, and of its codes or latents beneath it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    above, below = figure.subplots(2)
    plot_spectrogram(above, clip.audio, sampling_rate)
    name, unit = ("codes", "codebook") if "codes" in clip.row else ("latents", "channel")
    values = np.asarray(clip.row[name]).T
    below.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    below.set(xlabel="frame", ylabel=unit, title=name)
    with writing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
