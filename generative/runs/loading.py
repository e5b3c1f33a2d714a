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
    """Loads the language model or diffusion model of a folder, in float32.

    Raises:
        FileNotFoundError: If it holds no model.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        raise MissingFileError(f"No model in {folder}: there is no {path.name}.")
    if json.loads(path.read_text()).get("_class_name") == "LatentDiffusion":
        from generative.diffusion.latent_diffusion import LatentDiffusion

        return LatentDiffusion.from_pretrained(folder).eval()
    from generative.language_model.codec_lm import CodecLM

    return CodecLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_run(
    run: str | Path, tokenizer: str | Path | None = None, device: str = "cpu"
) -> tuple[Any, LatentTokenizer, dict[str, Any]]:
    """Loads a finished training run or an export.

    Args:
        run: Its folder.
        tokenizer: Folder or hub id. Default: the one that the run was trained with.
        device: Torch device of model and tokenizer.

    Returns:
        The model, the tokenizer and the run's description.

    Raises:
        FileNotFoundError: If there is no such run, or it is not finished.
        ValueError: If the tokenizer is not the run's, or the device does not exist.
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
            f"The run in {root} is not finished. Start its training again: it resumes."
        )
    name = tokenizer if tokenizer is not None else info["tokenizer"]
    if tokenizer is None and (root / "tokenizer").exists():
        name = root / "tokenizer"
    tok = load_tokenizer(name)
    check_tokenizer(tok, info)
    model = load_model(root / "model")
    return model.to(where), tok.to(where), info  # pyright: ignore[reportArgumentType]


def tokenizer_identity(tokenizer: LatentTokenizer, column: str) -> str:
    """What encoding and decoding must share; decoders may be finetuned in between."""
    return tokenizer.codes_fingerprint if column == "codes" else encoder_fingerprint(tokenizer)


def check_tokenizer(tokenizer: LatentTokenizer, info: dict[str, Any]) -> None:
    """Refuses a tokenizer other than the one that made a run's training data."""
    expected = info["identity"]
    identity = tokenizer_identity(tokenizer, info["column"])
    if identity != expected:
        raise InputError(
            f"The run was trained with tokenizer {expected} ({info['tokenizer'] or 'bundled'}),"
            f" this is {identity}. Name the right one with --tokenizer."
        )
