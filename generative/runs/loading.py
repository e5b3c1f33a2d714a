"""Finished runs: loading the model, tokenizer and description, and export as one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from generative.protocol import encoder_fingerprint
from tokenizer import LatentTokenizer, device_of, load_tokenizer
from tokenizer.errors import InputError, MissingFileError
from tokenizer.saving import write_json

# What describes a run, besides its model.
RUN_FILE = "run.json"
# Models that come with the package: an export each, which names its tokenizer.
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def bundled_models() -> list[str]:
    """Names of the models that come with the package, as `load_run` takes them."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{RUN_FILE}"))


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
    """Loads the model, the tokenizer and the description of a finished run or an export.

    Args:
        run: Its folder, or the name of a model in `PRETRAINED`.
        tokenizer: Folder, hub id or bundled name. Default: the one that the run was trained with.
        device: Torch device of model and tokenizer.

    Raises:
        FileNotFoundError: If there is no such run, or it is not finished.
        ValueError: If the tokenizer is not the run's, or the device does not exist.
    """
    torch_device = device_of(device)
    folder = Path(run)
    if run in bundled_models() and not folder.exists():
        folder = PRETRAINED / run
    run_file = folder / RUN_FILE
    if not run_file.exists():
        names = ", ".join(bundled_models())
        known = f" Models of the package: {names}." if names else ""
        raise MissingFileError(f"No run in {folder}: there is no {RUN_FILE}.{known}")
    info = json.loads(run_file.read_text())
    if not isinstance(info, dict) or not {"tokenizer", "column", "identity"} <= info.keys():
        raise InputError(f"{run_file} is damaged, or no description of a run.")
    if not (folder / "model").exists():
        raise MissingFileError(
            f"The run in {folder} is not finished. Start its training again: it resumes."
        )
    name = tokenizer if tokenizer is not None else info["tokenizer"]
    if tokenizer is None and (folder / "tokenizer").exists():
        name = folder / "tokenizer"
    tok = load_tokenizer(name)
    identity = tokenizer_identity(tok, info["column"])
    if identity != info["identity"]:
        raise InputError(
            f"The run was trained with tokenizer {info['identity']}"
            f" ({info['tokenizer'] or 'bundled'}), this is {identity}. Name the right one with"
            " --tokenizer."
        )
    model = load_model(folder / "model")
    return model.to(torch_device), tok.to(torch_device), info  # pyright: ignore[reportArgumentType]


def tokenizer_identity(tokenizer: LatentTokenizer, column: str) -> str:
    """What encoding and decoding must share; decoders may be finetuned in between."""
    return tokenizer.codes_fingerprint if column == "codes" else encoder_fingerprint(tokenizer)


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    half: bool = False,
    include_tokenizer: bool = True,
) -> None:
    """Writes ``model/``, ``tokenizer/`` and ``run.json``; `load_run` reads it like a run.

    The export of a diffusion model is also a `diffusers` pipeline:
    ``LatentDiffusionPipeline.from_pretrained`` loads it.

    ``half`` rounds matrices to float16, for half the size; the model still computes in float32.
    The tokenizer is a folder, hub id or bundled name, by default the run's. Where the export does
    not ``include_tokenizer``, its name is written instead: a bundled one, or one on the hub.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If ``out`` is the run itself.
    """
    folder = Path(out)
    if folder.resolve() == Path(run).resolve():
        raise InputError(f"{out} is the run itself: name another folder.")
    model, tok, info = load_run(run, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    if half:
        for parameter in model.parameters():
            if parameter.ndim > 1:  # Norms, biases and statistics stay in float32.
                parameter.data = parameter.data.to(torch.float16)
    if not include_tokenizer:
        model.save_pretrained(folder / "model")
    elif info["column"] == "latents":
        from generative.diffusion.latent_diffusion import make_scheduler
        from generative.diffusion.pipeline import LatentDiffusionPipeline

        scheduler = make_scheduler(shift=model.config["shift"])
        LatentDiffusionPipeline(model, scheduler, tok).save_pretrained(folder)
    else:
        model.save_pretrained(folder / "model")
        tok.save_pretrained(folder / "tokenizer")
    card = Path(run) / "model" / "README.md"
    if card.exists():
        shutil.copyfile(card, folder / "README.md")
    # Paths of the machine that trained it are left out.
    name = None if include_tokenizer else tokenizer or info["tokenizer"]
    description = info | {"tokenizer": name, "data": Path(info["data"]).name}
    write_json(folder / RUN_FILE, description)
