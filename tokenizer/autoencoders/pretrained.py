"""Other libraries' checkpoints: what their adapters share, and choosing and loading one."""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.autoencoders import AUTOENCODERS, Autoencoder, Decoder
from tokenizer.errors import InputError, MissingFileError

# What their config.json says -> the kind that reads them.
_KINDS = {
    ("model_type", "dac"): "dac",
    ("model_type", "encodec"): "encodec",
    ("_class_name", "AutoencoderOobleck"): "oobleck",
}
_SUPPORTED = (
    "Supported are checkpoints of transformers.DacModel and transformers.EncodecModel, of "
    "diffusers.AutoencoderOobleck, and diffusers pipelines with such a vae/."
)


def load_autoencoder(name: str | Path, **hub_options: Any) -> Autoencoder:
    """Loads another library's autoencoder, without its quantizer, in float32.

    Args:
        name: A folder as that library's ``save_pretrained`` writes it, a folder of a diffusers
            pipeline with a ``vae/`` in it, or the hub id of either.
        hub_options: ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as both
            libraries' ``from_pretrained`` take them.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or it has no config.json.
        ValueError: If it is not a supported autoencoder.
        ImportError: If it needs diffusers and that is not installed.
    """
    config, where = _read_config(str(name), **hub_options)
    # These name code to run: a repository with an attention kernel, a package to unpack weights.
    for key in ("attn_implementation", "_attn_implementation", "quantization_config"):
        if config.get(key) is not None:
            raise InputError(f"config.json of {name} has {key}, which no autoencoder needs.")
    for (field, value), kind in _KINDS.items():
        if config.get(field) == value:
            module, class_name = AUTOENCODERS[kind]
            adapter = getattr(import_module(module), class_name)
            return adapter.from_pretrained(name, **where, **hub_options)
    if config.get("model_type") == "latent_tokenizer":
        raise InputError(f"{name} is a LatentTokenizer already: load it with load_tokenizer().")
    kinds = {field: config[field] for field in ("model_type", "_class_name") if field in config}
    raise InputError(
        f"{name} is no supported autoencoder: found {kinds or 'no kind'}. {_SUPPORTED}"
    )


def load_complete(model_class: Any, name: str | Path, **options: Any) -> Any:
    """Another library's ``from_pretrained``, strict where the libraries only warn; in float32.

    Raises FileNotFoundError without its safetensors file, ValueError if that lacks weights.
    """
    try:
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, use_safetensors=True, **options
        )
    except OSError as error:
        raise MissingFileError(f"Cannot load {name}: {_first_line(error)}") from error
    lacking = [
        key for key in map(str, info["missing_keys"]) if key.startswith(("encoder.", "decoder."))
    ]
    if lacking:
        raise InputError(f"The checkpoint in {name} lacks weights: {', '.join(sorted(lacking))}.")
    return model.float().eval()


# Not `typing.Self`, which run-time checks of annotations do not understand on a method.
_Kind = TypeVar("_Kind", bound="LibraryAutoencoder")


class LibraryAutoencoder(Autoencoder):
    """What the adapters share: they are built from the library's model, and use it, not a copy.

    `fields` are the fields of the library's configuration that shape encoder and decoder.
    """

    fields: ClassVar[tuple[str, ...]]
    lost_samples = 0  # Of the decoder's last frame.

    def __init__(self, model: Any) -> None:
        super().__init__()
        values = {name: getattr(model.config, name) for name in self.fields}
        self._config = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    @abstractmethod
    def model_class(cls) -> Any:
        """The library's class; raises ImportError if the library is not installed."""

    @classmethod
    def untrained(cls, config: dict[str, Any]) -> Any:
        """The library's model, with the smallest quantizer it can have."""
        return cls.model_class()(**config)

    def num_frames(self, num_samples: int) -> int:
        """``ceil(num_samples / hop_length)``; one more where the decoder would fall short."""
        return frames_to_cover(num_samples, self.hop_length, self.lost_samples)

    def num_samples(self, num_frames: int) -> int:
        """``num_frames * hop_length``, less a few samples for decoders with odd strides."""
        return num_frames * self.hop_length - self.lost_samples

    def to_config(self) -> dict[str, Any]:
        """The `fields`."""
        return dict(self._config)

    @classmethod
    def from_config(cls: type[_Kind], config: dict[str, Any]) -> _Kind:
        """Builds an untrained model; raises ValueError for unknown or missing fields."""
        lacking, unknown = set(cls.fields) - set(config), set(config) - set(cls.fields)
        if lacking or unknown:
            raise InputError(
                f"Not a configuration of the {cls.kind} autoencoder: "
                f"lacks {sorted(lacking)}, does not know {sorted(unknown)}."
            )
        with _no_deprecations():
            return cls(cls.untrained(config))

    @classmethod
    def from_pretrained(cls: type[_Kind], name: str | Path, **options: Any) -> _Kind:
        """Loads a folder or a hub id, such as "descript/dac_44khz", in float32.

        Options are those of the library's ``from_pretrained``, such as ``subfolder="vae"`` for
        "stabilityai/stable-audio-open-1.0".
        """
        with _no_deprecations():
            return cls(load_complete(cls.model_class(), name, **options))


def frames_to_cover(num_samples: int, hop_length: int, lost_samples: int) -> int:
    """Frames of which a decoder makes ``num_samples`` although it loses some."""
    return -(-(num_samples + lost_samples) // hop_length)


class LibraryDecoder(Decoder):
    """Another library's decoder of latents ``[B, D, T]``, with the context that it needs."""

    def __init__(self, network: nn.Module, context: int | None) -> None:
        super().__init__()
        self.network, self.context = network, context

    def forward(
        self, latents: Float[Tensor, "B D T"], noise_level: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents; ``noise_level`` is ignored: the decoder was not trained with it."""
        del noise_level
        return self.network(latents)


@contextmanager
def _no_deprecations() -> Iterator[None]:
    # diffusers still uses the weight normalisation that torch calls deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _read_config(name: str, **hub_options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The config.json of a checkpoint, and the options that name the subfolder it is in."""
    from transformers.utils.hub import cached_file

    if not Path(name).is_dir() and (name.count("/") != 1 or Path(name).exists()):
        raise MissingFileError(f"No such checkpoint folder: {name}.")
    reason = "it holds neither config.json nor vae/config.json."
    for where in ({}, {"subfolder": "vae"}):
        try:
            path = cached_file(name, "config.json", **where, **hub_options)
        except OSError as error:
            reason = _first_line(error)
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
