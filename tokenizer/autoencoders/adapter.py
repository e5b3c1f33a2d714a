"""Other libraries' autoencoders, and one's own modules, as `Autoencoder`: one adapter for all.

A `Reader` says how a class is read. Encoding is deterministic: where an encoder gives a posterior,
its mean is taken. Audio is followed by zeros to whole hops, unless the encoder pads in its own way.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tokenizer.autoencoders import from_diffusers, from_transformers
from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.autoencoders.convolutions import convolutions, modern_weight_norm
from tokenizer.autoencoders.reader import Reader, Sizes, hops
from tokenizer.errors import (
    InputError,
    MissingFileError,
    MissingPackageError,
    UserError,
    import_extra,
)

READERS = from_transformers.READERS | from_diffusers.READERS

# Not `typing.Self`, which run-time checks of annotations do not understand on a method.
_Kind = TypeVar("_Kind", bound="LibraryAutoencoder")


class LibraryEncoder(Encoder):
    """Audio ``[B, C, N]`` to latents ``[B, D, num_frames(N)]`` by another library's modules."""

    def __init__(self, network: nn.Module, reader: Reader, sizes: Sizes) -> None:
        super().__init__()
        self.network, self._reader, self._sizes = network, reader, sizes
        self.context, self.lookahead = sizes.encoder_reach or (None, None)

    def forward(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """Encodes audio of any length."""
        return self._outputs(audio)[:, : self._sizes.latent_dim]

    def posterior(
        self, audio: Float[Tensor, "B C N"]
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, "B D T"]] | None:
        """See `Encoder.posterior`."""
        if self._reader.deviations is None:
            return None
        mean, scale = self._outputs(audio).split(self._sizes.latent_dim, dim=1)
        return mean, self._reader.deviations(scale)

    def _outputs(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D2 T"]:
        sizes = self._sizes
        if not self._reader.own_padding:
            # No negative numbers, which ONNX would divide in another way.
            rest = (audio.shape[-1] + sizes.lost_samples) % sizes.hop_length
            missing = sizes.lost_samples + (sizes.hop_length - rest) % sizes.hop_length
            audio = nn.functional.pad(audio, (0, missing))
        return self._reader.encode(self.network, audio)


class LibraryDecoder(Decoder):
    """Latents ``[B, D, T]`` to audio by another library's modules."""

    def __init__(self, network: nn.Module, reader: Reader, sizes: Sizes) -> None:
        super().__init__()
        self.network, self._reader = network, reader
        self.context, self.lookahead = sizes.decoder_reach or (None, None)

    def forward(
        self, latents: Float[Tensor, "B D T"], noise_level: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents; ``noise_level`` is ignored: the decoder was not trained with it."""
        del noise_level
        return self._reader.decode(self.network, latents)


class LibraryAutoencoder(Autoencoder):
    """An autoencoder that is built from a library's model, and uses it, not a copy.

    Raises:
        ValueError: If the model cannot be read.
    """

    reader: ClassVar[Reader]

    def __init__(self, model: Any) -> None:
        super().__init__()
        reader = self.reader
        self._config = self._described(model)
        modern_weight_norm(model)
        self.sizes = sizes = reader.sizes(model)
        encoder, decoder = reader.halves(model)
        for module in (*encoder.modules(), *decoder.modules()):
            # A checkpoint is loaded into an empty model: what is not saved would hold garbage.
            module._non_persistent_buffers_set.clear()
        self.encoder = LibraryEncoder(encoder, reader, sizes)
        self.decoder = LibraryDecoder(decoder, reader, sizes)
        self.sampling_rate, self.num_channels = sizes.sampling_rate, sizes.num_channels
        self.hop_length, self.latent_dim = sizes.hop_length, sizes.latent_dim
        self.normalize = sizes.normalize
        self.peak = sizes.peak if sizes.normalize else None

    @property
    def latent_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """See `Autoencoder.latent_statistics`."""
        mean, std = self.sizes.latents_mean, self.sizes.latents_std
        return None if mean is None or std is None else (mean, std)

    def num_frames(self, num_samples: int) -> int:
        """``ceil(num_samples / hop_length)``; one more where the decoder would fall short."""
        return hops(num_samples + self.sizes.lost_samples, self.hop_length)

    def num_samples(self, num_frames: int) -> int:
        """``num_frames * hop_length``, less a few samples for decoders with odd strides."""
        return num_frames * self.hop_length - self.sizes.lost_samples

    @classmethod
    def _described(cls, model: Any) -> dict[str, Any]:
        values = {name: getattr(model.config, name) for name in cls.reader.fields}
        return json.loads(json.dumps(values))  # tuples as lists

    def to_config(self) -> dict[str, Any]:
        """The fields of the library's configuration that shape encoder and decoder."""
        return deepcopy(self._config)

    @classmethod
    def model_class(cls) -> Any:
        """The library's class; raises ImportError if it is not installed, or too old to have it."""
        reader = cls.reader
        library = import_extra(reader.library, f"{reader.model}", reader.library)
        found = getattr(library, reader.model, None)
        if found is None:
            raise MissingPackageError(
                f"{reader.library} {library.__version__} has no {reader.model}: "
                f'pip install --upgrade "{reader.library}>={reader.since}".'
            )
        return found

    @classmethod
    def untrained(cls, config: dict[str, Any]) -> Any:
        """The library's model, with the smallest quantizer that it can have."""
        model = cls.model_class()
        options = {**config, **cls.reader.smallest}
        return model(model.config_class(**options)) if cls.reader.model_type else model(**options)

    @classmethod
    def from_config(cls: type[_Kind], config: dict[str, Any]) -> _Kind:
        """Builds an untrained model; raises ValueError for unknown or missing fields."""
        lacking = sorted(set(cls.reader.fields) - set(config))
        if lacking:
            raise InputError(
                f"Not a configuration of the {cls.kind} autoencoder: {', '.join(lacking)} missing."
            )
        return cls._built(config)

    @classmethod
    def from_fields(cls: type[_Kind], fields: dict[str, Any]) -> _Kind:
        """Builds a model to train, of some fields and the library's defaults of the others.

        Raises:
            ValueError: If a field is unknown, or the values do not fit each other.
        """
        autoencoder = cls._built(fields)
        for module in convolutions(autoencoder):
            # transformers begins with weights of deviation 0.02, which hardly pass a signal. Weight
            # normalisation has a scale of its own.
            if not is_parametrized(module):
                module.reset_parameters()
        autoencoder.check(cls.kind)
        return autoencoder

    @classmethod
    def _built(cls: type[_Kind], fields: dict[str, Any]) -> _Kind:
        unknown = sorted(set(fields) - set(cls.reader.fields))
        if unknown:
            raise InputError(
                f"The {cls.kind} autoencoder has no field {unknown[0]!r}; it has "
                f"{', '.join(cls.reader.fields)}."
            )
        with _no_deprecations(), _refused(f"Not a configuration of the {cls.kind} autoencoder"):
            return cls(cls.untrained(fields))

    @classmethod
    def from_pretrained(cls: type[_Kind], name: str | Path, **options: Any) -> _Kind:
        """Loads a folder or a hub id, such as "descript/dac_44khz", in float32.

        Options are those of the library's ``from_pretrained``, such as ``subfolder="vae"`` for
        "stabilityai/stable-audio-open-1.0".
        """
        with _no_deprecations():
            model = load_complete(cls.model_class(), name, cls.reader.ignored, **options)
            autoencoder = cls(model)
        autoencoder.check(str(name))
        return autoencoder

    @torch.no_grad()
    def check(self, name: str) -> None:
        """Raises ValueError if encoder and decoder do not fit each other: codes two hops."""
        sizes, samples = self.sizes, 2 * self.hop_length
        z = self.encoder(torch.zeros(1, sizes.num_channels, samples - sizes.lost_samples))
        audio = self.decoder(z)
        expected = [1, sizes.num_channels, samples - sizes.lost_samples]
        if list(z.shape) != [1, sizes.latent_dim, 2] or list(audio.shape) != expected:
            raise InputError(
                f"{name}: two hops of {sizes.hop_length} samples become latents "
                f"{list(z.shape)} and audio {list(audio.shape)}; encoder and decoder do not fit."
            )


@contextmanager
def _no_deprecations() -> Iterator[None]:
    # diffusers still uses the weight normalisation that torch calls deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Names what the libraries refuse; they raise many kinds of errors for values that do not fit.

    Missing packages, too little memory and missing files are not the value's fault.
    """
    try:
        yield
    except (UserError, ImportError, MemoryError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{what}: {first_line(error)}") from error


def load_complete(
    model_class: Any, name: str | Path, ignored: tuple[str, ...], **options: Any
) -> Any:
    """Another library's ``from_pretrained``, strict where the libraries only warn; in float32.

    Raises FileNotFoundError without its safetensors file, ValueError if that lacks weights whose
    names do not begin as one of ``ignored``, or has others than the configuration says.
    """
    options |= {"output_loading_info": True, "use_safetensors": True}
    try:
        with _refused(f"{name} is damaged, or not a {model_class.__name__}"):
            model, info = model_class.from_pretrained(name, **options)
    except OSError as error:
        raise MissingFileError(f"Cannot load {name}: {first_line(error)}") from error
    lacking = [key for key in map(str, info["missing_keys"]) if not key.startswith(ignored)]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        names = ", ".join(sorted(lacking)[:3])
        raise InputError(
            f"The checkpoint in {name} lacks weights: {names}{more}. They are of another class, or "
            f"of another version than its config.json, which says {model_class.__name__}."
        )
    return model.float().eval()


def first_line(error: Exception) -> str:
    """What an error says, cut to a line."""
    return (str(error).strip() or repr(error)).split("\n", 1)[0]


@cache
def adapter(kind: str) -> type[LibraryAutoencoder]:
    """The adapter of a kind of `READERS`."""
    reader = READERS[kind]
    name = kind.replace("-", " ").title().replace(" ", "") + "Autoencoder"
    text = f"``{reader.library}.{reader.model}``; see `LibraryAutoencoder`."
    members = {"kind": kind, "reader": reader, "__doc__": text, "__module__": __name__}
    return type(name, (LibraryAutoencoder,), members)


DacAutoencoder = adapter("dac")
EncodecAutoencoder = adapter("encodec")
OobleckAutoencoder = adapter("oobleck")
