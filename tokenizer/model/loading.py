"""Where tokenizers come from: the package, folders, the hub, other libraries' autoencoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer.autoencoders.adapter import READERS
from tokenizer.autoencoders.pretrained import SUBFOLDERS, kind_of, load_autoencoder
from tokenizer.errors import InputError
from tokenizer.model.checkpoint import read_checkpoint
from tokenizer.model.core import TokenizerCore
from tokenizer.model.validation import checkpoint_folder, read_config

if TYPE_CHECKING:  # Importing transformers takes longer than to encode a clip.
    from tokenizer.model.latent_tokenizer import LatentTokenizer

PRETRAINED = Path(__file__).parents[1] / "pretrained"
BUNDLED = PRETRAINED / "base-44khz"


def bundled_names() -> list[str]:
    """Names of the tokenizers that come with the package, as `load_tokenizer` takes them."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def bundled_for(sampling_rate: int, hop_length: int) -> Path:
    """The bundled tokenizer whose frames have this many samples; the default one if none does."""
    for name in bundled_names():
        sizes = read_config(PRETRAINED / name / "config.json")["autoencoder"]
        if (sizes["sampling_rate"], sizes["hop_length"]) == (sampling_rate, hop_length):
            return PRETRAINED / name
    return BUNDLED


def load_tokenizer(name: str | Path | None = None) -> LatentTokenizer:
    """Loads a tokenizer, on the CPU, in float32; FileNotFoundError if there is none.

    Args:
        name: A folder, a hub id ("user/model"), or the name of a tokenizer that comes with the
            package: "base-44khz" (None means it), or "compact-44khz", made for generative models.
    """
    from tokenizer.model.latent_tokenizer import LatentTokenizer

    return LatentTokenizer.from_pretrained(_checked(name))


def load_core(name: str | Path | None = None) -> TokenizerCore:
    """The same without `transformers`, unless the tokenizer is on the hub: it starts sooner."""
    folder = checkpoint_folder(_checked(name))
    return load_tokenizer(name) if folder is None else read_checkpoint(TokenizerCore, folder)


def _checked(name: str | Path | None) -> str | Path:
    """The folder or hub id; ValueError for the folder of another library's autoencoder."""
    if name in bundled_names() and not Path(str(name)).exists():
        return PRETRAINED / str(name)
    if name is not None and (kind := _library_kind(Path(name))) is not None:
        reader = READERS[kind]
        raise InputError(
            f"{name} is a {reader.model} of {reader.library}, not yet a tokenizer: `latok wrap "
            f"{name} --out T` makes one of its latents, `latok fit {name} AUDIO --out T` one with "
            "codes."
        )
    return BUNDLED if name is None else name


def load_for_fitting(name: str | Path, *, subfolder: str | None = None) -> LatentTokenizer:
    """Loads a tokenizer, or another library's autoencoder as a tokenizer without quantizer.

    ``subfolder`` says where in ``name`` that autoencoder is, unless `load_autoencoder` finds it.
    """
    from tokenizer.model.latent_tokenizer import LatentTokenizer

    config = Path(name) / "config.json"
    if config.is_file() and read_config(config).get("model_type") == "latent_tokenizer":
        return LatentTokenizer.from_pretrained(name)
    return LatentTokenizer.from_autoencoder(load_autoencoder(str(name), subfolder=subfolder))


def _library_kind(folder: Path) -> str | None:
    """The kind of another library's autoencoder in a folder; None if it is none or no folder."""
    for place in ("", *SUBFOLDERS):
        path = folder / place / "config.json"
        if path.is_file():
            try:
                return kind_of(read_config(path))
            except InputError:  # which is told where the folder is read
                return None
    return None
