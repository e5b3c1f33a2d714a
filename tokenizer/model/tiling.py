"""Long signals piece by piece, with the result of the whole.

A network that works step by step (`tokenizer.networks.stepping`) is fed with whatever comes. Any
other is
run over tiles on one fixed grid: `tile_frames` latent frames plus as much context on either side as
the network sees; where a tile meets the end of the signal it ends there, so the network's own
padding acts as it would on the whole. All routes (one array, blocks of a file, a live stream, alone
or in a batch) go through these functions and compute the same products on the same shapes; that is
why they agree exactly, not nearly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder, Decoder
from tokenizer.errors import InputError
from tokenizer.networks.stepping import Stepper

# Frames of a tile: as many as these samples hold, for bounded memory, within limits.
TILE_SAMPLES, MIN_FRAMES, MAX_FRAMES = 2**19, 64, 1024
# What steppers are given at once, in frames: memory stays bounded.
_PIECE = 1024


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

        Args:
            x: Samples ``[G, M, n]`` of G groups of M jointly coded channels, or latents
                ``[G, D, n]``.
            final: Whether nothing comes after it.
        """


def encoder_pieces(autoencoder: Autoencoder, *, eager: bool = False) -> Pieces:
    """Audio to latents; ``eager`` gives each frame as soon as it is known (see `lookahead`)."""
    encoder, hop = autoencoder.encoder, autoencoder.hop_length
    if (first := encoder.stepper()) is not None:
        sizes = (1, autoencoder.latent_dim)
        return _Steps(first, encoder.stepper, sizes, _PIECE * hop, eager=eager)
    if encoder.context is None:
        return _Whole(encoder, autoencoder.latent_dim)
    return _EncoderTiles(autoencoder, encoder.context)


def decoder_pieces(
    autoencoder: Autoencoder, decoder: Decoder, noise_level: float, *, eager: bool = False
) -> Pieces:
    """Latents to audio; ``eager`` as in `encoder_pieces`, noise as in `Decoder.forward`."""

    def run(z: Tensor) -> Tensor:
        return decoder(z, z.new_full((len(z),), noise_level))

    if (first := decoder.stepper(noise_level)) is not None:
        sizes = (autoencoder.latent_dim, 1)
        return _Steps(first, partial(decoder.stepper, noise_level), sizes, _PIECE, eager=eager)
    if decoder.context is None:
        return _Whole(run, autoencoder.num_channels)
    return _DecoderTiles(autoencoder, run, decoder.context)


def encoder_lookahead(autoencoder: Autoencoder) -> int | None:
    """Frames after its own whose audio an eager stream awaits before a latent frame is known.

    None: all.
    """
    encoder = autoencoder.encoder
    if encoder.stepper() is not None:
        return encoder.lookahead
    if encoder.context is None:
        return None
    return tile_frames(autoencoder.hop_length) + encoder.context


def decoder_lookahead(autoencoder: Autoencoder, decoder: Decoder) -> int | None:
    """Latent frames after its own that an eager stream awaits before a frame's samples are known.

    None: all.
    """
    if decoder.stepper(0.0) is not None:
        return decoder.lookahead
    if decoder.context is None:
        return None
    return tile_frames(autoencoder.hop_length) + decoder.context


def encode_tiles(
    autoencoder: Autoencoder, blocks: Iterable[Float[Tensor, "G M _"]]
) -> Iterator[Float[Tensor, "G D _"]]:
    """Encodes a signal that arrives in blocks of any size.

    Args:
        autoencoder: Its encoder is used as it is, in evaluation mode.
        blocks: Consecutive samples of G groups of M jointly coded channels; at least one sample in
            all.

    Yields:
        Consecutive latents, about a tile at a time.
    """
    size = tile_frames(autoencoder.hop_length) * autoencoder.hop_length
    pieces = encoder_pieces(autoencoder)
    return _drive(pieces, blocks, size, "There is no audio to encode: the signal has no samples.")


def decode_tiles(
    autoencoder: Autoencoder,
    decoder: Decoder,
    latents: Iterable[Float[Tensor, "G D _"]],
    noise_level: float,
) -> Iterator[Float[Tensor, "G M _"]]:
    """Decodes latents that arrive in pieces of any length.

    Args:
        autoencoder: Supplies hop and lengths.
        decoder: The decoder to use.
        latents: Consecutive latent frames; at least one in all.
        noise_level: See `Decoder.forward`.

    Yields:
        Consecutive samples, ``autoencoder.num_samples(T)`` in all.
    """
    size = tile_frames(autoencoder.hop_length)
    pieces = decoder_pieces(autoencoder, decoder, noise_level)
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


def _rows(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "G ..."]
) -> Float[Tensor, "G ..."]:
    # One row at a time, contiguous: a matrix product's last bits depend on its shape and strides,
    # and a code can hang on a last bit.
    return torch.cat([function(row[None].contiguous()) for row in x])


class _Steps(Pieces):
    """A stepper for each group, which has one channel."""

    def __init__(
        self,
        first: Stepper,
        another: Callable[[], Stepper | None],
        sizes: tuple[int, int],
        piece: int,
        *,
        eager: bool,
    ) -> None:
        self._another, self._sizes, self._piece, self._eager = another, sizes, piece, eager
        self._steppers: list[Stepper | None] = [first]

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        while len(self._steppers) < len(x):
            self._steppers.append(self._another())
        rows = [self._row(s, row, final) for s, row in zip(self._steppers, x, strict=True)]
        return torch.stack(rows)

    def _row(self, stepper: Stepper | None, row: Tensor, final: bool) -> Tensor:
        assert stepper is not None
        # Samples or frames first; a channel of its own is no axis of a stepper.
        x = row[0] if self._sizes[0] == 1 else row.T
        cuts = range(0, max(len(x), 1), self._piece)
        found = [
            stepper.push(
                x[cut : cut + self._piece], final=final and cut == cuts[-1], eager=self._eager
            )
            for cut in cuts
        ]
        out = torch.cat(found)
        return out[None] if self._sizes[1] == 1 else out.T


class _Whole(Pieces):
    """What depends on the whole signal: nothing comes before its end."""

    def __init__(self, function: Callable[[Tensor], Tensor], rows: int) -> None:
        self._function, self._num_rows = function, rows
        self._waiting: list[Tensor] = []

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        self._waiting.append(x)
        if final:
            return _rows(self._function, torch.cat(self._waiting, dim=-1))
        return x.new_zeros(len(x), self._num_rows, 0)


class _EncoderTiles(Pieces):
    def __init__(self, autoencoder: Autoencoder, context: int) -> None:
        self._autoencoder, self._context = autoencoder, context
        self._hop, self._size = autoencoder.hop_length, tile_frames(autoencoder.hop_length)
        self._buffer: Tensor | None = None
        self._origin = 0  # frame at which the buffer begins
        self._first = 0  # first frame of the next tile

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        encoder, hop, size = self._autoencoder.encoder, self._hop, self._size
        buffer = x if self._buffer is None else torch.cat([self._buffer, x], dim=-1)
        found = [x.new_zeros(len(x), self._autoencoder.latent_dim, 0)]
        # Strictly more than a tile reaches, so that the signal is known to go on.
        while buffer.shape[-1] > (end := (self._first - self._origin + size + self._context) * hop):
            skip = self._first - self._origin
            found.append(_rows(encoder, buffer[..., :end])[..., skip : skip + size])
            self._first += size
            start = max(0, self._first - self._context)
            buffer = buffer[..., (start - self._origin) * hop :]
            self._origin = start
        self._buffer = buffer
        if not final:
            return torch.cat(found, dim=-1)
        num_frames = self._origin + self._autoencoder.num_frames(buffer.shape[-1])
        while self._first < num_frames:
            stop = min(self._first + size, num_frames)
            last = min(stop + self._context, num_frames)
            skip = min(self._first, self._context)
            audio = buffer[..., (self._first - skip - self._origin) * hop :]
            if last < num_frames:
                audio = audio[..., : (last - self._first + skip) * hop]
            found.append(_rows(encoder, audio)[..., skip : skip + stop - self._first])
            self._first = stop
        return torch.cat(found, dim=-1)


class _DecoderTiles(Pieces):
    def __init__(
        self, autoencoder: Autoencoder, run: Callable[[Tensor], Tensor], context: int
    ) -> None:
        self._run, self._context, self._channels = run, context, autoencoder.num_channels
        self._hop, self._size = autoencoder.hop_length, tile_frames(autoencoder.hop_length)
        self._buffer: Tensor | None = None
        self._origin = self._first = 0

    def push(self, x: Tensor, *, final: bool = False) -> Tensor:
        hop, size, context = self._hop, self._size, self._context
        buffer = x if self._buffer is None else torch.cat([self._buffer, x], dim=-1)
        found = [x.new_zeros(len(x), self._channels, 0)]
        while buffer.shape[-1] > (end := self._first - self._origin + size + context):
            skip = self._first - self._origin
            audio = _rows(self._run, buffer[..., :end])
            found.append(audio[..., skip * hop : (skip + size) * hop])
            self._first += size
            start = max(0, self._first - context)
            buffer = buffer[..., start - self._origin :]
            self._origin = start
        self._buffer = buffer
        if not final:
            return torch.cat(found, dim=-1)
        num_frames = self._origin + buffer.shape[-1]
        while self._first < num_frames:
            stop = min(self._first + size, num_frames)
            start = max(0, self._first - context)
            last = min(stop + context, num_frames)
            audio = _rows(self._run, buffer[..., start - self._origin : last - self._origin])
            end = (stop - start) * hop if stop < num_frames else audio.shape[-1]
            found.append(audio[..., (self._first - start) * hop : end])
            self._first = stop
        return torch.cat(found, dim=-1)
