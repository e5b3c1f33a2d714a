"""How another library's autoencoder is read: one `Reader` a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

# Frames before and after its own that a frame depends on; None: the whole signal.
Reach = tuple[int, int] | None


@dataclass(frozen=True)
class Sizes:
    """The numbers of one autoencoder.

    Attributes:
        sampling_rate: Hz.
        num_channels: Channels that are coded jointly.
        hop_length: Samples per latent frame.
        latent_dim: D.
        encoder_reach: How far a latent frame sees into the audio.
        decoder_reach: How far the samples of a frame see into the latents.
        lost_samples: Of the last frame, where the decoder returns less than whole hops.
        normalize: Whether audio has to have a level of its own.
        peak: The peak that audio has to have; None: a root mean square of 1.
        latents_mean: Of each latent channel, where the checkpoint knows it.
        latents_std: The standard deviations.
    """

    sampling_rate: int
    num_channels: int
    hop_length: int
    latent_dim: int
    encoder_reach: Reach
    decoder_reach: Reach
    lost_samples: int = 0
    normalize: bool = False
    peak: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


def _itself(network: Any, x: Tensor) -> Tensor:
    return network(x)


def _encoder_and_decoder(model: Any) -> tuple[nn.Module, nn.Module]:
    return model.encoder, model.decoder


@dataclass(frozen=True)
class Reader:
    """How one class of a library is read.

    Attributes:
        library: "transformers" or "diffusers".
        model: Name of the class.
        fields: The fields of its configuration that shape encoder and decoder.
        sizes: The sizes of a model.
        halves: The modules of a model that encode and those that decode.
        encode: Runs the first on audio ``[B, C, N]`` of whole hops. What it returns beyond D
            channels is left out: the scale of a posterior whose mean the first D are.
        deviations: Turns what `encode` returns beyond D channels into standard deviations of the
            posterior; None if there is no posterior, or it is not read.
        decode: Runs the second on latents ``[B, D, T]``.
        model_type: What ``config.json`` calls a class of transformers.
        smallest: Arguments that make parts without use here as small as they can be.
        ignored: What the names of weights without use here begin with.
        own_padding: Whether the encoder takes any length, and pads it in its own way.
        since: Version of the library that it was tried with.
    """

    library: str
    model: str
    fields: tuple[str, ...]
    sizes: Callable[[Any], Sizes]
    halves: Callable[[Any], tuple[nn.Module, nn.Module]] = _encoder_and_decoder
    encode: Callable[[Any, Float[Tensor, "B C N"]], Float[Tensor, "B D2 T"]] = _itself
    decode: Callable[[Any, Float[Tensor, "B D T"]], Float[Tensor, "B C N"]] = _itself
    deviations: Callable[[Tensor], Tensor] | None = None
    model_type: str = ""
    smallest: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    own_padding: bool = False
    since: str = "5.23"


class Parts(nn.Module):
    """Some modules of a model, under their own names, in the order of the signal."""

    def __init__(self, model: Any, *names: str) -> None:
        super().__init__()
        self.config = model.config
        for name in names:
            setattr(self, name, getattr(model, name))


def hops(samples: int, hop_length: int) -> int:
    """How many hops these samples touch."""
    return -(-samples // hop_length)
