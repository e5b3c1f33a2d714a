"""Long signals in tiles, with the result of the whole.

Every signal, short or long, is coded tile by tile on one fixed grid: `tile_frames` latent frames
plus as much context on either side as the network sees. Where a tile meets the end of the signal it
ends there, so the network's own padding acts as it would on the whole. All routes (one array, a
stream of blocks, alone or in a batch) go through these functions and compute the same products on
the same shapes; that is why they agree exactly, not nearly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder, Decoder

# Frames of a tile: as many as these samples hold, for bounded memory, within limits.
TILE_SAMPLES, MIN_FRAMES, MAX_FRAMES = 2**19, 64, 1024


def tile_frames(hop_length: int) -> int:
    """Latent frames of a tile for models of this hop."""
    return min(max(TILE_SAMPLES // hop_length, MIN_FRAMES), MAX_FRAMES)


def _rows(
    function: Callable[[Tensor], Tensor], x: Float[Tensor, "G ..."]
) -> Float[Tensor, "G ..."]:
    # One row at a time, contiguous: a matrix product's last bits depend on its shape and strides,
    # and a code can hang on a last bit.
    return torch.cat([function(row[None].contiguous()) for row in x])


def encode_tiles(
    autoencoder: Autoencoder, blocks: Iterable[Float[Tensor, "G M _"]]
) -> Iterator[Float[Tensor, "G D _"]]:
    """Encodes a signal that arrives in blocks of any size.

    Args:
        autoencoder: Its encoder is used as it is, in evaluation mode.
        blocks: Consecutive samples of G groups of M jointly coded channels; at least one sample in
            all.

    Yields:
        Consecutive latents, a tile at a time; the last ones may be fewer.
    """
    encoder, hop = autoencoder.encoder, autoencoder.hop_length
    size = tile_frames(hop)
    if encoder.context is None:
        yield _rows(encoder, torch.cat(list(blocks), dim=-1))
        return
    reach = (size + encoder.context) * hop
    buffer: Tensor | None = None
    origin = 0  # frame at which the buffer begins
    first = 0  # first frame of the next tile
    for block in blocks:
        buffer = block if buffer is None else torch.cat([buffer, block], dim=-1)
        # Strictly more than a tile reaches, so that the signal is known to go on.
        while buffer.shape[-1] > (first - origin) * hop + reach:
            latents = _rows(encoder, buffer[..., : (first - origin) * hop + reach])
            yield latents[..., first - origin : first - origin + size]
            first += size
            start = max(0, first - encoder.context)
            buffer = buffer[..., (start - origin) * hop :]
            origin = start
    if buffer is None:
        raise ValueError("There is no audio to encode: the signal has no samples.")
    num_frames = origin + autoencoder.num_frames(buffer.shape[-1])
    while first < num_frames:
        stop = min(first + size, num_frames)
        last = min(stop + encoder.context, num_frames)
        skip = min(first, encoder.context)
        audio = buffer[..., (first - skip - origin) * hop :]
        if last < num_frames:
            audio = audio[..., : (last - first + skip) * hop]
        latents = _rows(encoder, audio)
        yield latents[..., skip : skip + stop - first]
        first = stop


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
    hop = autoencoder.hop_length
    size = tile_frames(hop)

    def run(z: Tensor) -> Tensor:
        return decoder(z, z.new_full((len(z),), noise_level))

    if decoder.context is None:
        yield _rows(run, torch.cat(list(latents), dim=-1))
        return
    context = decoder.context
    buffer: Tensor | None = None
    origin = first = 0
    for piece in latents:
        buffer = piece if buffer is None else torch.cat([buffer, piece], dim=-1)
        while origin + buffer.shape[-1] > first + size + context:
            skip = first - origin
            audio = _rows(run, buffer[..., : skip + size + context])
            yield audio[..., skip * hop : (skip + size) * hop]
            first += size
            start = max(0, first - context)
            buffer = buffer[..., start - origin :]
            origin = start
    if buffer is None:
        raise ValueError("There is nothing to decode: no latent frames.")
    num_frames = origin + buffer.shape[-1]
    while first < num_frames:
        stop = min(first + size, num_frames)
        start = max(0, first - context)
        last = min(stop + context, num_frames)
        audio = _rows(run, buffer[..., start - origin : last - origin])
        end = (stop - start) * hop if stop < num_frames else audio.shape[-1]
        yield audio[..., (first - start) * hop : end]
        first = stop
