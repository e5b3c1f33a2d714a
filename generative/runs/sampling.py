"""From a trained model to audio: requests in seconds, rows, files."""

from __future__ import annotations

from tokenizer.errors import InputError, MissingFileError

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.runs.pictures import save_picture
from generative.protocol import CodeSampling, DiffusionSampling, GenerationRequest, Row
from generative.training.run_log import replace_text
from tokenizer import LatentTokenizer, device_of, load_tokenizer, write_audio

# What describes a run, besides its model.
RUN_FILE = "run.json"
# Seconds: a day.
_LONGEST = 86_400


@dataclass(frozen=True)
class GeneratedClip:
    """A generated row and what it sounds like.

    Attributes:
        row: Codes or latents; the tokenizer decodes it.
        audio: Float32 ``[C, N]``.
        label: The class that was asked for.
        caption: The text that was asked for.
    """

    row: Row
    audio: Float[np.ndarray, "C N"]
    label: str | None
    caption: str | None


def num_samples_of(seconds: float | int, sampling_rate: int) -> int:
    """Samples of a clip of this length.

    Raises:
        ValueError: If nothing is left to generate, or no end of it.
    """
    if not abs(seconds) <= _LONGEST:
        raise InputError(f"seconds={seconds:g}: a clip has a length, of {_LONGEST:,} s at most.")
    if (count := round(seconds * sampling_rate)) < 1:
        raise InputError(f"seconds={seconds:g}: nothing to generate.")
    return count


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
) -> Row:
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
    tokenizer: LatentTokenizer, row: Row, snap_codebooks: int | None = None
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
) -> Iterator[tuple[Row, str | None, str | None]]:
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
    replace_text(folder / "samples.json", json.dumps(content, indent=1))
    return entries


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)[:40]


def load_model(folder: str | Path) -> Any:
    """Loads a language model or a diffusion model, whichever the folder holds.

    Raises:
        FileNotFoundError: If it holds neither.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise MissingFileError(f"No model in {folder}: there is no {path.name}.")
    if json.loads(path.read_text()).get("_class_name") == "LatentDiffusion":
        from generative.diffusion.latent_diffusion import LatentDiffusion

        return LatentDiffusion.from_pretrained(folder).eval()
    from generative.language_model.codec_lm import CodecLM

    # Whatever the weights are stored in.
    return CodecLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_run(
    run: str | Path, tokenizer: str | Path | None = None, device: str = "cpu"
) -> tuple[Any, LatentTokenizer, dict[str, Any]]:
    """Loads what a training run or an export left behind.

    Args:
        run: Its folder.
        tokenizer: Folder or hub id. Default: the one that the run was trained with.
        device: Where model and tokenizer are to compute.

    Returns:
        The model, the tokenizer and the run's description.

    Raises:
        FileNotFoundError: If there is no such run, or it is not finished.
        ValueError: If the tokenizer is another one than the run's, or there is no such device.
    """
    where = device_of(device)
    root = Path(run)
    described = root / RUN_FILE
    if not described.exists():
        raise MissingFileError(f"No run in {root}: there is no {RUN_FILE}.")
    info = json.loads(described.read_text())
    if not isinstance(info, dict) or not {"tokenizer", "column", "identity"} <= info.keys():
        raise InputError(f"{described} is damaged, or no description of a run.")
    if not (root / "model").exists():
        raise MissingFileError(
            f"The run in {root} is not finished. Start its training again: it goes on."
        )
    name = tokenizer if tokenizer is not None else info["tokenizer"]
    if tokenizer is None and (root / "tokenizer").exists():
        name = root / "tokenizer"
    found = load_tokenizer(name)
    check_tokenizer(found, info)
    model = load_model(root / "model")
    return model.to(where), found.to(where), info  # pyright: ignore[reportArgumentType]


def tokenizer_identity(tokenizer: LatentTokenizer, column: str) -> str:
    """What must not change between encoding and decoding; decoders may be finetuned meanwhile."""
    return tokenizer.codes_fingerprint if column == "codes" else encoder_fingerprint(tokenizer)


def encoder_fingerprint(tokenizer: LatentTokenizer) -> str:
    """Sixteen hex digits that say which encoder made some latents.

    The whole fingerprint will not do: it changes with a decoder's finetuning, latents do not.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tokenizer.autoencoder.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_tokenizer(tokenizer: LatentTokenizer, info: dict[str, Any]) -> None:
    """Refuses a tokenizer that did not make what a run was trained on."""
    expected = info["identity"]
    found = tokenizer_identity(tokenizer, info["column"])
    if found != expected:
        raise InputError(
            f"The run was trained with tokenizer {expected} ({info['tokenizer'] or 'bundled'}),"
            f" this is {found}. Name the right one with --tokenizer."
        )
