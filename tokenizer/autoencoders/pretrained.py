"""Which of the readers takes a checkpoint of another library, and loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizer.autoencoders.adapter import READERS, adapter, first_line
from tokenizer.autoencoders.base import Autoencoder
from tokenizer.errors import InputError, MissingFileError
from tokenizer.hub import check_name

# Where pipelines of diffusers have their autoencoder of audio.
SUBFOLDERS = ("vae", "audio_vae", "sound_tokenizer")

_MEL = "its latents are of mel spectrograms, which need a vocoder of their own to become audio"
_SEMANTIC = "its encoder needs a second, semantic model in front"
_SPEECH = "it is a whole speech model: save its codec alone,"
DECLINED = {
    "AutoencoderKLLTX2Audio": _MEL,
    "AutoencoderMMAudio": _MEL,
    "MMAudioVAE": _MEL,
    "xcodec": _SEMANTIC,
    "xcodec2": _SEMANTIC,
    "higgs_audio_v2_tokenizer": _SEMANTIC,
    "neucodec": "it decodes at another sampling rate than it encodes",
    "pocket_tts": f"{_SPEECH} a PocketTTSAudioTokenizerModel",
    "vibevoice": f"{_SPEECH} a VibeVoiceAcousticTokenizerModel",
}


def load_autoencoder(
    name: str | Path, *, subfolder: str | None = None, **hub_options: Any
) -> Autoencoder:
    """Loads another library's autoencoder, without its quantizer, in float32.

    Args:
        name: A folder as that library's ``save_pretrained`` writes it, in one file or in shards, a
            folder of a diffusers pipeline with one in it (`SUBFOLDERS`), or the hub id of either.
        subfolder: Where in it the autoencoder is. Default: found.
        hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as both
            libraries' ``from_pretrained`` take them.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it has no config.json.
        ValueError: If it is not a supported autoencoder, or encoder and decoder do not fit.
        ImportError: If it needs a library that is not installed, or a newer version of it.
    """
    config, where = _read_config(str(name), subfolder, **hub_options)
    # These name code to run: a repository with an attention kernel, a package to unpack weights.
    for key in ("attn_implementation", "_attn_implementation", "quantization_config"):
        if config.get(key) is not None:
            raise InputError(f"config.json of {name} has {key}, which no autoencoder needs.")
    kind = kind_of(config)
    if kind is not None:
        return adapter(kind).from_pretrained(name, **where, **hub_options)
    if config.get("model_type") == "latent_tokenizer":
        raise InputError(f"{name} is a LatentTokenizer already: load it with load_tokenizer().")
    kinds = {field: config[field] for field in ("model_type", "_class_name") if field in config}
    for value in kinds.values():
        if isinstance(value, str) and value in DECLINED:
            raise InputError(f"{name} ({value}) is not supported: {DECLINED[value]}.")
    supported = ", ".join(f"{reader.library}.{reader.model}" for reader in READERS.values())
    raise InputError(
        f"{name} is no supported autoencoder: found {kinds or 'no kind'}. Supported are checkpoints"
        f" of {supported}, and diffusers pipelines with one of these in {'/, '.join(SUBFOLDERS)}/."
    )


def kind_of(config: dict[str, Any]) -> str | None:
    """The kind that reads a checkpoint with this config.json; None if none does."""
    for kind, reader in READERS.items():
        field, value = ("_class_name", reader.model)
        if reader.model_type:
            field, value = ("model_type", reader.model_type)
        if config.get(field) == value:
            return kind
    return None


def _read_config(
    name: str, subfolder: str | None, **hub_options: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config.json of a checkpoint, and the options that name the subfolder it is in."""
    from transformers.utils.hub import cached_file

    if Path(name).is_file():
        raise MissingFileError(f"No such checkpoint folder: {name}. It is a file.")
    check_name(name, subfolder=subfolder, **hub_options)
    places = ("", *SUBFOLDERS) if subfolder is None else (subfolder,)
    reason = f"it holds no config.json, nor one in {'/, '.join(places[1:] or places)}/."
    for place in places:
        where = {"subfolder": place} if place else {}
        try:
            path = cached_file(name, "config.json", **where, **hub_options)
        except OSError as error:
            reason = first_line(error)
            continue
        if path is None:  # cached_file's answer where only this file is missing
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}.") from None
        if not isinstance(config, dict):
            raise InputError(f"{path} holds no JSON object.")
        return config, where
    raise MissingFileError(f"Cannot load {name}: {reason}")
