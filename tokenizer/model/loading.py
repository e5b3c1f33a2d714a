"""Where tokenizers come from: the package, folders, the hub, other libraries' autoencoders."""

from __future__ import annotations

from pathlib import Path

from tokenizer.autoencoders.pretrained import load_autoencoder
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.validation import read_config

BUNDLED = Path(__file__).parents[1] / "pretrained" / "base-44khz"


def load_tokenizer(name: str | Path | None = None) -> LatentTokenizer:
    """Loads a tokenizer, on the CPU, in float32; FileNotFoundError if there is none.

    Args:
        name: A folder, a hub id ("user/model"), or None for the model that comes with the package.
    """
    return LatentTokenizer.from_pretrained(BUNDLED if name is None else name)


def load_for_fitting(name: str | Path) -> LatentTokenizer:
    """Loads a tokenizer, or a DAC, EnCodec or Oobleck as a tokenizer without quantizer."""
    config = Path(name) / "config.json"
    if config.is_file() and read_config(config).get("model_type") == "latent_tokenizer":
        return LatentTokenizer.from_pretrained(name)
    return LatentTokenizer.from_autoencoder(load_autoencoder(str(name)))
