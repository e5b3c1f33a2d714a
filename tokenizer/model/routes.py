"""How signals pass through an autoencoder; here in turn, with equal bits however they come.

That is the route of CPUs (docs/exactness.md). On other devices an operation costs about the same
however little it computes, so all signals of a batch are computed together (`PackedRoute`,
`BucketRoute`); their last bits may differ from a CPU's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder, Decoder
from tokenizer.model.gains import measured_gain
from tokenizer.model.tiling import decode_tiles, encode_tiles

# What becomes of latents before they leave the device, and of frames before they are decoded, each
# ``[B, rows, T]``.
Mapped = Callable[[Tensor], Tensor]


def not_finite(what: str) -> str:
    """What to say of values that float32 could not hold."""
    return f"{what} are not finite: what they were made of is too large, or damaged."


class HostSignal(ABC):
    """A signal that is read on the host.

    Attributes:
        name: For messages.
        num_channels: C.
        num_samples: N.
        gain: What each channel is divided by.
    """

    name: str
    num_channels: int
    num_samples: int
    gain: Float32[np.ndarray, " C"]

    @abstractmethod
    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """Yields the samples as they are, in blocks."""

    @abstractmethod
    def latents(self) -> Iterator[Float[Tensor, "G D t"]]:
        """Yields the latents, a tile at a time, in bounded memory."""


Signal = TypeVar("Signal", bound=HostSignal)


class Route:
    """Signals in turn.

    Args:
        autoencoder: Whose encoder and decoders are run, in evaluation mode, without gradients.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder

    def latents(
        self,
        x: Float[Tensor, "B M N"],
        lengths: Sequence[int],
        gain: Float32[np.ndarray, " B"] | None,
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """Encodes a batch, padded on the right; zero past the end of shorter items.

        Returns:
            The latents, and the gains: ``gain``, or what was measured.
        """
        gains, latents = [], []
        for i, (item, length) in enumerate(zip(x, lengths, strict=True)):
            audio = item[:, :length]
            level = audio.double().square().mean(), audio.abs().max()
            gains.append(
                measured_gain(self.autoencoder, *level) if gain is None else float(gain[i])
            )
            tiles = encode_tiles(self.autoencoder, [audio[None] / gains[-1]])
            latents.append(torch.cat(list(tiles), dim=-1)[0])
        longest = max((z.shape[-1] for z in latents), default=0)
        out = x.new_zeros(len(x), self.autoencoder.latent_dim, longest)
        for row, z in zip(out, latents, strict=True):
            row[:, : z.shape[-1]] = z
        return out, torch.tensor(gains, device=x.device)

    def audio(
        self, z: Float[Tensor, "B D T"], decoder: Decoder, level: Float[Tensor, ""]
    ) -> Float[Tensor, "B M N"]:
        """Decodes a batch of latents of this noise level (`Decoder.forward`)."""
        if not len(z):
            return z.new_zeros(0, self.autoencoder.num_channels, 0)
        number = float(level)
        return torch.cat(
            [
                torch.cat(list(decode_tiles(self.autoencoder, decoder, [item[None]], number)), -1)
                for item in z
            ]
        )

    def frames(
        self, signals: Iterable[Signal], finish: Mapped
    ) -> Iterator[tuple[Signal, Shaped[np.ndarray, "T n"]]]:
        """Encodes signals; ``finish`` makes what is wanted of latents, such as codes.

        Yields:
            Each signal, in order, and its frames, group of channels after group.
        """
        for signal in signals:
            tiles = [finish(z) for z in signal.latents()]
            frames = torch.cat(tiles, dim=-1).transpose(1, 2).flatten(0, 1)
            yield signal, frames.cpu().numpy()

    def waves(
        self,
        items: Sequence[Shaped[np.ndarray, "_ _ n"]],
        begin: Mapped,
        decoder: Decoder,
        level: Float[Tensor, ""],
    ) -> Iterator[Float32[np.ndarray, "C N"]]:
        """Decodes frames of signals, of which ``begin`` makes latents."""
        for item in items:
            z = begin(torch.from_numpy(item).transpose(1, 2))
            yield self.audio(z, decoder, level).flatten(0, 1).cpu().numpy()
