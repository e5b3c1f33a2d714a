"""From a trained model to audio: requests in seconds, rows, files."""

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
    num_samples_of,
)
from generative.runs.pictures import save_picture
from tokenizer import LatentTokenizer, write_audio
from tokenizer.errors import InputError
from tokenizer.saving import write_json


@dataclass(frozen=True)
class GeneratedClip:
    """A generated row and what it sounds like.

    Attributes:
        row: Codes or latents; the tokenizer decodes it.
        audio: Float32 ``[C, N]``.
        label: The class that was asked for.
        caption: The text that was asked for.
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
    sampling_rate: int | None = None,
    n_codebooks: int | None = None,
    guidance_scale: float | int = 1.0,
    codes: CodeSampling | None = None,
    diffusion: DiffusionSampling | None = None,
) -> GenerationRequest:
    """A request for clips of a length in seconds.

    Args:
        tokenizer: Decodes the clips.
        seconds: Length, the prompt included.
        labels: Class or None for each clip.
        captions: Text or None for each clip.
        prompt: Audio (a path, array, ...) that every clip begins with.
        sampling_rate: Of a prompt that is a bare array.
        n_codebooks: Of the model, if it is a language model: the prompt gets so many codes.
        guidance_scale: 1 is no guidance.
        codes: Settings of language models.
        diffusion: Settings of diffusion models.

    Raises:
        ValueError: If nothing is left to generate, or no end of it.
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
    row = encode_prompt(tokenizer, prompt, sampling_rate, n_codebooks)
    gain = float(np.mean(row["gain"]))
    return replace(request, prompts=(row,) * request.batch_size, gain=gain)


def encode_prompt(
    tokenizer: LatentTokenizer, audio: Any, sampling_rate: int | None, n_codebooks: int | None
) -> TokenRow:
    """A row with the latents of a prompt, and its codes if there are any, of one channel group."""
    row = tokenizer.encode_latents(audio, sampling_rate=sampling_rate, downmix=True)
    # The last frame of a clip may look at the silence behind it, which is not to be continued.
    usable = row["num_samples"] // tokenizer.hop_length
    if usable < 1:
        raise InputError(f"The prompt has {row['num_samples']} samples: that is no whole frame.")
    if n_codebooks is not None:
        row["codes"] = tokenizer.latents_to_codes(row, n_codebooks=n_codebooks)["codes"][:usable]
    return row | {"latents": row["latents"][:usable]}


def decode(
    tokenizer: LatentTokenizer, row: TokenRow, snap_codebooks: int | None = None
) -> Float[np.ndarray, "C N"]:
    """Audio of a generated row: codes by the decoder for codes, latents by the continuous one.

    Args:
        tokenizer: Decodes.
        row: With ``codes`` or ``latents``.
        snap_codebooks: Latents are quantized to so many codebooks first, and decoded as codes.
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
    """Yields a clip for every label of a request.

    Args:
        model: A `GenerativeModel`.
        tokenizer: Decodes.
        request: What to generate.
        seed: The same seed (and batch size) gives the same clips.
        snap_codebooks: See `decode`.
        batch_size: Clips generated together.
    """
    for row, label, caption in generate_rows(model, request, seed=seed, batch_size=batch_size):
        yield GeneratedClip(row, decode(tokenizer, row, snap_codebooks), label, caption)


def generate_rows(
    model: Any, request: GenerationRequest, *, seed: int = 0, batch_size: int = 8
) -> Iterator[tuple[TokenRow, str | None, str | None]]:
    """Yields a row, and the label and caption that were asked for; arguments as in `generate`."""
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: it must be at least 1.")
    for first in range(0, request.batch_size, batch_size):
        part = slice(first, first + batch_size)
        some = replace(
            request,
            labels=tuple(request.labels[part]),
            captions=tuple(request.captions[part]),
            prompts=tuple(request.prompts[part]),
        )
        # torch takes 64 bits, which a time in nanoseconds as the seed would exceed.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + first) % 2**64)
        rows = model.generate_rows(some, generator)
        captions = some.captions or [None] * len(rows)
        yield from zip(rows, some.labels, captions, strict=True)


def save_clips(
    clips: Iterator[GeneratedClip],
    folder: Path,
    sampling_rate: int,
    description: dict[str, Any] | None = None,
    pictures: bool = True,
) -> list[dict[str, Any]]:
    """Writes each clip as WAV and PNG, and ``samples.json`` that says what they are.

    Args:
        clips: May be generated as they are asked for.
        folder: Made if it is not there.
        sampling_rate: Hz.
        description: Goes into ``samples.json``.
        pictures: Whether to draw spectrograms.

    Returns:
        The entries of ``samples.json``.
    """
    entries: list[dict[str, Any]] = []
    for index, clip in enumerate(clips):
        # Not before there is something to put into it.
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{index:03d}" + (f"-{_safe(clip.label)}" if clip.label else "")
        write_audio(folder / f"{name}.wav", clip.audio, sampling_rate)
        if pictures:
            save_picture(folder / f"{name}.png", clip.audio, sampling_rate, clip.row)
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


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)[:40]
