"""Loading what a training run or an export wrote: its model, its tokenizer and its description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from generative.protocol import encoder_fingerprint
from tokenizer import LatentTokenizer, device_of, load_tokenizer
from tokenizer.errors import InputError, MissingFileError

# What describes a run, besides its model.
RUN_FILE = "run.json"


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


def check_tokenizer(tokenizer: LatentTokenizer, info: dict[str, Any]) -> None:
    """Refuses a tokenizer that did not make what a run was trained on."""
    expected = info["identity"]
    found = tokenizer_identity(tokenizer, info["column"])
    if found != expected:
        raise InputError(
            f"The run was trained with tokenizer {expected} ({info['tokenizer'] or 'bundled'}),"
            f" this is {found}. Name the right one with --tokenizer."
        )
