"""The route of devices for any network: signals of equal length are computed together.

Most networks treat the end of a signal in a way that zeros after it do not imitate. So only signals
of one length share a batch, unless the network is causal: what comes later changes nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.errors import InputError
from tokenizer.model.gains import measured_gains
from tokenizer.model.routes import HostSignal, Mapped, Route, Signal, not_finite
from tokenizer.model.tiling import decode_tiles, encode_tiles, together

# Samples of a batch, padding included; longer signals go in turn, tile by tile.
BUCKET_SAMPLES = 2**21
# Where padding is exact, the shortest of a batch has at least this share of the longest.
_LEAST_SHARE = 0.75


def buckets(lengths: Sequence[int], most: int, *, padded: bool) -> Iterator[list[int]]:
    """Indices of signals that share a batch: of equal length, or ``padded`` to the longest."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group:
            shortest = lengths[group[0]]
            alike = shortest >= _LEAST_SHARE * lengths[i] if padded else shortest == lengths[i]
            if not alike or (len(group) + 1) * lengths[i] > most:
                yield group
                group = []
        group.append(i)
    if group:
        yield group


def is_causal(network: Encoder | Decoder) -> bool:
    """Whether zeros after a signal change none of its results."""
    return network.context is not None and network.lookahead == 0


class BucketRoute(Route):
    """Signals of like length together.

    Args:
        autoencoder: Any.
        device: Where it is.
        most_samples: Of a batch.
    """

    def __init__(
        self, autoencoder: Autoencoder, device: torch.device, most_samples: int = BUCKET_SAMPLES
    ) -> None:
        super().__init__(autoencoder)
        self._device, self._most = device, most_samples

    def latents(
        self,
        x: Float[Tensor, "B M N"],
        lengths: Sequence[int],
        gain: Float32[np.ndarray, " B"] | None,
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """See `Route.latents`."""
        model = self.autoencoder
        ends = torch.tensor(lengths, device=x.device)
        x = torch.where((torch.arange(x.shape[-1], device=x.device) < ends[:, None])[:, None], x, 0)
        if gain is None:
            gains = measured_gains(model, x, ends)
        else:
            gains = torch.from_numpy(gain).to(x.device)
        x = x / gains[:, None, None]
        longest = max((model.num_frames(n) for n in lengths), default=0)
        out = x.new_zeros(len(x), model.latent_dim, longest)
        for group in self._groups(lengths, model.encoder):
            z = self._encoded(x[group, :, : lengths[group[-1]]])
            for i, item in zip(group, z, strict=True):
                frames = model.num_frames(lengths[i])
                out[i, :, :frames] = item[:, :frames]
        return out, gains

    def audio(
        self, z: Float[Tensor, "B D T"], decoder: Decoder, level: Float[Tensor, ""]
    ) -> Float[Tensor, "B M N"]:
        """See `Route.audio`."""
        model = self.autoencoder
        if not len(z):
            return z.new_zeros(0, model.num_channels, 0)
        count = max(1, self._most // max(1, z.shape[-1] * model.hop_length))
        parts = [self._decoded(part, decoder, level) for part in z.split(count)]
        return torch.cat(parts)

    def frames(
        self, signals: Iterable[Signal], finish: Mapped
    ) -> Iterator[tuple[Signal, Shaped[np.ndarray, "T n"]]]:
        """See `Route.frames`."""
        model, batch = self.autoencoder, list(signals)
        rows: list[tuple[Signal, np.ndarray]] = []  # [M, N]
        for signal in batch:
            if signal.num_samples * signal.num_channels <= self._most:
                rows += [(signal, group) for group in self._read(signal)]
        lengths = [group.shape[-1] for _, group in rows]
        found: dict[int, list[np.ndarray]] = {id(signal): [] for signal in batch}
        results: list[np.ndarray] = [np.zeros((0, 0))] * len(rows)
        for group in self._groups(lengths, model.encoder):
            x = np.zeros((len(group), model.num_channels, lengths[group[-1]]), np.float32)
            for row, i in zip(x, group, strict=True):
                row[:, : lengths[i]] = rows[i][1]
            counts = [model.num_frames(lengths[i]) for i in group]
            latents = zip(self._encoded(torch.from_numpy(x).to(self._device)), counts, strict=True)
            z = torch.cat([item[:, :count] for item, count in latents], dim=-1)
            if not bool(torch.isfinite(z).all()):
                bad = torch.isfinite(z).all(0).logical_not().cpu().numpy().argmax()
                place = int(np.searchsorted(np.cumsum(counts), bad, side="right"))
                raise InputError(not_finite(f"The latents of {rows[group[place]][0].name}"))
            frames = finish(z[None])[0].T.contiguous().cpu().numpy()
            for i, part in zip(group, np.split(frames, np.cumsum(counts)[:-1]), strict=True):
                results[i] = part
        for (signal, _), frames in zip(rows, results, strict=True):
            found[id(signal)].append(frames)
        for signal in batch:
            if found[id(signal)]:
                yield signal, np.concatenate(found[id(signal)])
            else:
                yield from super().frames([signal], finish)

    def waves(
        self,
        items: Sequence[Shaped[np.ndarray, "_ _ n"]],
        begin: Mapped,
        decoder: Decoder,
        level: Float[Tensor, ""],
    ) -> Iterator[Float32[np.ndarray, "C N"]]:
        """See `Route.waves`."""
        model, rows = self.autoencoder, [row for item in items for row in item]
        results: list[np.ndarray] = [np.zeros((0, 0))] * len(rows)
        lengths = [len(row) for row in rows]
        for group in self._groups(lengths, decoder, model.hop_length):
            frames = np.zeros(
                (len(group), lengths[group[-1]], rows[group[0]].shape[1]), rows[0].dtype
            )
            for row, i in zip(frames, group, strict=True):
                row[: lengths[i]] = rows[i]
            z = begin(torch.from_numpy(frames).to(self._device).transpose(1, 2))
            audio = self._decoded(z, decoder, level).cpu().numpy()
            for i, wave in zip(group, audio, strict=True):
                results[i] = wave[:, : model.num_samples(lengths[i])]
        parts = iter(results)
        for item in items:
            yield np.concatenate([next(parts) for _ in item])

    def _groups(
        self, lengths: Sequence[int], network: Encoder | Decoder, unit: int = 1
    ) -> Iterator[list[int]]:
        most = self._most // (unit * self.autoencoder.num_channels)
        return buckets(lengths, most, padded=is_causal(network))

    def _read(self, signal: HostSignal) -> Float32[np.ndarray, "G M N"]:
        """A signal over its gain, in groups of jointly coded channels."""
        wave = np.concatenate(list(signal.blocks()), axis=-1) / signal.gain[:, None]
        joint = self.autoencoder.num_channels
        missing = -len(wave) % joint
        wave = np.concatenate([wave, np.repeat(wave[-1:], missing, axis=0)])
        return wave.reshape(-1, joint, wave.shape[-1])

    def _encoded(self, x: Float[Tensor, "B M N"]) -> Float[Tensor, "B D T"]:
        return torch.cat(list(encode_tiles(self.autoencoder, [x], together)), dim=-1)

    def _decoded(
        self, z: Float[Tensor, "B D T"], decoder: Decoder, level: Float[Tensor, ""]
    ) -> Float[Tensor, "B M N"]:
        tiles = decode_tiles(self.autoencoder, decoder, [z], float(level), together)
        return torch.cat(list(tiles), dim=-1)
