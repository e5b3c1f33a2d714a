"""``latok wrap``: another library's autoencoder as a tokenizer of latents."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import add_command, add_device
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.latent_tokenizer import LatentTokenizer


def _wrap(options: argparse.Namespace) -> None:
    from tokenizer.devices import device_of
    from tokenizer.model.loading import load_for_fitting

    if options.out.resolve() == Path(options.model).resolve():
        raise InputError(f"--out {options.out} is the autoencoder itself: name another folder.")
    tokenizer = load_for_fitting(options.model, subfolder=options.subfolder)
    if options.audio is not None:
        device = device_of(options.device)
        _measure(tokenizer.to(device), options.audio)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(options.out)
    print(f"Tokenizer of latents (no codes yet): {options.out}")
    if not bool(tokenizer.latents_mean.any()):
        print(
            "The mean and deviation of its latents are not known, which diffusion models need: name"
            " AUDIO to measure them."
        )


def _measure(tokenizer: LatentTokenizer, audio: str) -> None:
    """Puts the mean and the deviation of the latents of some audio into the tokenizer."""
    from tokenizer.training.clips import scan
    from tokenizer.training.quantizer import FitConfig, cache_latents, set_statistics

    with tempfile.TemporaryDirectory() as folder:
        source = cache_latents(tokenizer, scan(audio), Path(folder) / "latents.npy", FitConfig())
        set_statistics(tokenizer, source)


def register(commands: Any, command: str | None) -> None:  # noqa: ARG001
    """Adds the command's parser; none of its options needs torch."""
    p = add_command(
        commands,
        "wrap",
        _wrap,
        "another library's autoencoder as a tokenizer of latents, without codes",
        description="Makes a tokenizer of an autoencoder of transformers or diffusers, for latents "
        "and diffusion models. For codes: latok fit.",
    )
    p.add_argument(
        "model", metavar="MODEL", help="folder or hub id; docs/autoencoders.md lists all"
    )
    text = "folder of audio, saved dataset, or dataset:NAME, to measure the latents' mean and "
    text += "deviation on; default: what the checkpoint knows"
    p.add_argument("audio", metavar="AUDIO", nargs="?", help=text)
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    text = "where in MODEL the autoencoder is; default: found (vae, audio_vae, sound_tokenizer)"
    p.add_argument("--subfolder", metavar="NAME", help=text)
    add_device(p)
