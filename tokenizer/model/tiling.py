"""Encoders and decoders run over long signals piece by piece, with the result of the whole.

A network that works step by step (`tokenizer.networks.stepping`) takes whatever arrives. Any other
network runs over tiles on one fixed grid: `tile_frames` latent frames, plus as much context on
either side as the network sees. At the ends of the signal a tile ends too, so the network's own
padding acts as it would on the whole. Every route (an array, a file, a stream, alone or in a batch)
goes through these functions; docs/exactness.md explains why they agree bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.errors import InputError
from tokenizer.networks.stepping import Stepper

# Frames of a tile: as many as these samples hold, for bounded memory, within limits.
TILE_SAMPLES, MIN_FRAMES, MAX_FRAMES = 2**19, 64, 1024
# What steppers are given at once, in frames: memory stays bounded.
_PIECE = 1024


# How a network is applied to several rows.
Rows = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def in_turn(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "G ..."]
) -> Float[Tensor, "G ..."]:
    """One row at a time, contiguous, which gives equal bits however many there are.

    The last bits of a matrix product depend on its shape and strides, and a one-bit difference can
    change which code is chosen.
    """
    return torch.cat([_full(function(row[None].contiguous())) for row in x])


def together(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "G ..."]
) -> Float[Tensor, "G ..."]:
    """All rows at once, which is faster where an operation costs more than what it computes."""
    return _full(function(x.contiguous()))


def _full(x: Tensor) -> Tensor:
    """What networks in half precision give, in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def tile_frames(hop_length: int) -> int:
    """Latent frames of a tile for models of this hop."""
    return min(max(TILE_SAMPLES // hop_length, MIN_FRAMES), MAX_FRAMES)


class Pieces(ABC):
    """One signal on its way through an encoder or a decoder."""

    @abstractmethod
    def push(
        self, x: Float[Tensor, "G rows n"], *, final: bool = False
    ) -> Float[Tensor, "G rows2 m"]:
        """Takes what comes next, any length of it; returns what is complete, perhaps nothing.

        ``x`` holds G groups: of M jointly coded channels, or of latents. ``final``: it is the last.
        """


def encoder_pieces(
    autoencoder: Autoencoder, *, eager: bool = False, rows: Rows = in_turn
) -> Pieces:
    """Audio to latents; ``eager`` gives each frame as soon as it is known (see `lookahead`)."""
    encoder, hop = autoencoder.encoder, autoencoder.hop_length
    if rows is in_turn and encoder.stepper() is not None:
        sizes = (autoencoder.num_channels, autoencoder.latent_dim)
        return _Steps(encoder.stepper, sizes, _PIECE * hop, eager=eager)
    if encoder.context is None:
        return _Whole(partial(rows, encoder), autoencoder.latent_dim)
    sizes, num_frames = (hop, 1), autoencoder.num_frames
    function = partial(rows, encoder)
    return _Tiles(function, autoencoder.latent_dim, num_frames, sizes, _reach(encoder))


def decoder_pieces(
    autoencoder: Autoencoder,
    decoder: Decoder,
    noise_level: float,
    *,
    eager: bool = False,
    rows: Rows = in_turn,
) -> Pieces:
    """Latents to audio; ``eager`` as in `encoder_pieces`, noise as in `Decoder.forward`."""

    def run(z: Tensor) -> Tensor:
        return decoder(z, z.new_full((len(z),), noise_level))

    if rows is in_turn and decoder.stepper(noise_level) is not None:
        sizes = (autoencoder.latent_dim, autoencoder.num_channels)
        return _Steps(partial(decoder.stepper, noise_level), sizes, _PIECE, eager=eager)
    if decoder.context is None:
        return _Whole(partial(rows, run), autoencoder.num_channels)
    sizes = (1, autoencoder.hop_length)
    return _Tiles(partial(rows, run), autoencoder.num_channels, int, sizes, _reach(decoder))


def _reach(network: Encoder | Decoder) -> tuple[int, int]:
    """Frames before and after its own that a frame depends on."""
    context = network.context
    assert context is not None
    return context, context if network.lookahead is None else network.lookahead


def lookahead(network: Encoder | Decoder, hop_length: int) -> int | None:
    """Frames after its own that an eager stream awaits before a frame is complete; None: all."""
    stepper = network.stepper(0.0) if isinstance(network, Decoder) else network.stepper()
    if stepper is not None:
        return network.lookahead
    return None if network.context is None else tile_frames(hop_length) + _reach(network)[1]


def encode_tiles(
    autoencoder: Autoencoder, blocks: Iterable[Float[Tensor, "G M _"]], rows: Rows = in_turn
) -> Iterator[Float[Tensor, "G D _"]]:
    """Encodes a signal, at least one sample, that arrives in blocks of any size.

    Yields:
        Consecutive latents, about a tile at a time.
    """
    size = tile_frames(autoencoder.hop_length) * autoencoder.hop_length
    pieces = encoder_pieces(autoencoder, rows=rows)
    return _drive(pieces, blocks, size, "There is no audio to encode: the signal has no samples.")


def decode_tiles(
    autoencoder: Autoencoder,
    decoder: Decoder,
    latents: Iterable[Float[Tensor, "G D _"]],
    noise_level: float,
    rows: Rows = in_turn,
) -> Iterator[Float[Tensor, "G M _"]]:
    """Decodes latents, at least one frame, that arrive in pieces of any length.

    Yields:
        Consecutive samples, ``autoencoder.num_samples(T)`` in all.
    """
    size = tile_frames(autoencoder.hop_length)
    pieces = decoder_pieces(autoencoder, decoder, noise_level, rows=rows)
    return _drive(pieces, latents, size, "There is nothing to decode: no latent frames.")


def _drive(pieces: Pieces, arriving: Iterable[Tensor], size: int, nothing: str) -> Iterator[Tensor]:
    """Pushes what arrives, at least ``size`` at a time but the last."""
    waiting: list[Tensor] = []
    total = 0
    for block in arriving:
        # Only now it is known that what waits is not the last.
        if waiting and sum(x.shape[-1] for x in waiting) >= size:
            yield pieces.push(torch.cat(waiting, dim=-1))
            waiting = []
        waiting.append(block)
        total += block.shape[-1]
    if total == 0:
        raise InputError(nothing)
    yield pieces.push(torch.cat(waiting, dim=-1), final=True)


class _Steps(Pieces):
    """A stepper for each group; ``sizes`` are the rows in and out."""

    def __init__(
        self, make: Callable[[], Stepper | None], sizes: tuple[int, int], piece: int, *, eager: bool
    ) -> None:
        self._make, self._sizes, self._piece, self._eager = make, sizes, piece, eager
        self._steppers: list[Stepper | None] = []

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        self._steppers = self._steppers or [self._make() for _ in x]
        rows = [self._row(s, row, final) for s, row in zip(self._steppers, x, strict=True)]
        return torch.stack(rows)

    def _row(self, stepper: Stepper | None, row: Tensor, final: bool) -> Tensor:
        assert stepper is not None
        # Samples or frames first; a single channel is no axis of a stepper.
        x = row[0] if self._sizes[0] == 1 else row.T
        *first, last = x.split(self._piece)
        pieces = [stepper.push(piece, eager=self._eager) for piece in first]
        out = torch.cat([*pieces, stepper.push(last, final=final, eager=self._eager)])
        return out[None] if self._sizes[1] == 1 else out.T


class _Whole(Pieces):
    """A network whose output depends on the whole signal: nothing comes before its end."""

    def __init__(self, function: Callable[[Tensor], Tensor], num_rows: int) -> None:
        self._function, self._num_rows = function, num_rows
        self._waiting: list[Tensor] = []

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        self._waiting.append(x)
        if final:
            return self._function(torch.cat(self._waiting, dim=-1))
        return x.new_zeros(len(x), self._num_rows, 0)


class _Tiles(Pieces):
    """A network run over tiles with context.

    Args:
        function: The network on a piece ``[G, rows, n]``.
        num_rows: Rows of its output.
        num_frames: Latent frames of an input of so many values.
        sizes: Values per latent frame: ``(hop, 1)`` of an encoder, ``(1, hop)`` of a decoder.
        reach: Frames before and after its own that the network sees.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        num_rows: int,
        num_frames: Callable[[int], int],
        sizes: tuple[int, int],
        reach: tuple[int, int],
    ) -> None:
        self._function, self._num_rows, self._num_frames = function, num_rows, num_frames
        self._size_in, self._size_out = sizes
        self._tile = tile_frames(max(sizes))
        self._before, self._after = reach
        self._buffer: Tensor | None = None
        self._origin = 0  # frame at which the buffer begins
        self._first = 0  # first frame of the next tile

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        buffer = x if self._buffer is None else torch.cat([self._buffer, x], dim=-1)
        tiles = [x.new_zeros(len(x), self._num_rows, 0)]
        # Strictly more than the tile and its context, so that this is not the end of the signal.
        while buffer.shape[-1] > (
            (self._first - self._origin + self._tile + self._after) * self._size_in
        ):
            tiles.append(self._next(buffer, self._first + self._tile, None))
            start = max(0, self._first - self._before)
            buffer = buffer[..., (start - self._origin) * self._size_in :]
            self._origin = start
        self._buffer = buffer
        if final:
            num_frames = self._origin + self._num_frames(buffer.shape[-1])
            while self._first < num_frames:
                stop = min(self._first + self._tile, num_frames)
                tiles.append(self._next(buffer, stop, num_frames))
        return torch.cat(tiles, dim=-1)

    def _next(self, buffer: Tensor, stop: int, num_frames: int | None) -> Tensor:
        """The tile that ends before frame ``stop`` of ``num_frames``, None where more may come."""
        start = max(0, self._first - self._before)
        end = stop + self._after
        x = buffer[..., (start - self._origin) * self._size_in :]
        if num_frames is None or end < num_frames:
            x = x[..., : (end - start) * self._size_in]
        out = self._function(x)[..., (self._first - start) * self._size_out :]
        if stop != num_frames:  # The last frame may stand for more samples than a hop.
            out = out[..., : (stop - self._first) * self._size_out]
        self._first = stop
        return out
