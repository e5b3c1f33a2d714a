"""The route of devices for networks that take windows of rows: see `tokenizer.networks.packing`.

A batch goes one way: read on the host, laid end to end, copied to the device once, encoded in
passes of one shape, searched, copied back once, cut into signals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from torch.nn import functional

from tokenizer.autoencoders.base import Autoencoder, Decoder
from tokenizer.devices import send
from tokenizer.errors import InputError
from tokenizer.model.gains import measured_gains
from tokenizer.model.routes import HostSignal, Mapped, Route, Signal, not_finite
from tokenizer.networks.noise import frame_states
from tokenizer.networks.packing import PackedNetwork, Windows, passes, unpacked


class PackedRoute(Route):
    """All signals, channels and tiles of a batch together, in passes of one shape.

    Args:
        autoencoder: Whose encoder and decoders are `packed`.
        encoder: Its packed encoder.
        device: Where it is.
        windows: The shape of a pass.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        encoder: PackedNetwork,
        device: torch.device,
        windows: Windows,
    ) -> None:
        super().__init__(autoencoder)
        self._encoder, self._device, self._windows = encoder, device, windows

    def latents(
        self,
        x: Float[Tensor, "B M N"],
        lengths: Sequence[int],
        gain: Float32[np.ndarray, " B"] | None,
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, " B"]]:
        """See `Route.latents`."""
        model, network = self.autoencoder, self._encoder
        hop, gap = model.hop_length, network.gap
        if not len(x):
            return x.new_zeros(0, model.latent_dim, 0), x.new_ones(0)
        samples = self._copied(np.array(lengths))
        frames = self._copied(np.array([model.num_frames(n) for n in lengths]))
        num_frames = model.num_frames(max(lengths))
        x = x[..., : max(lengths)]
        if min(lengths) < max(lengths):
            places = torch.arange(x.shape[-1], device=x.device)
            x = torch.where((places < samples[:, None])[:, None], x, 0)
        gains = measured_gains(model, x, samples) if gain is None else self._copied(gain)
        size = num_frames + gap
        x = functional.pad(x / gains[:, None, None], (0, size * hop - x.shape[-1]))
        rows = x.unflatten(-1, (size, hop)).transpose(1, 2).flatten(2)
        inside = torch.arange(size, device=x.device) < frames[:, None]
        z = self._run(network, rows, inside)[:, :num_frames]
        z = torch.where(inside[:, :num_frames, None], z, 0)
        return z.transpose(1, 2), gains

    def audio(
        self, z: Float[Tensor, "B D T"], decoder: Decoder, level: Float[Tensor, ""]
    ) -> Float[Tensor, "B M N"]:
        """See `Route.audio`."""
        count, _, num_frames = z.shape
        model, network = self.autoencoder, self._packed(decoder, level)
        if not count:
            return z.new_zeros(0, model.num_channels, 0)
        if not num_frames:
            raise InputError("There is nothing to decode: no latent frames.")
        states = self._copied(_states(num_frames)).expand(count, -1, 1)
        rows = functional.pad(torch.cat([z.transpose(1, 2), states], -1), (0, 0, 0, network.gap))
        size = num_frames + network.gap
        inside = (torch.arange(size, device=z.device) < num_frames).expand(count, -1)
        blocks = self._run(network, rows, inside)[:, :num_frames]
        waves = blocks.unflatten(-1, (model.num_channels, -1)).transpose(1, 2).flatten(2)
        return waves[..., : model.num_samples(num_frames)]

    def frames(
        self, signals: Iterable[Signal], finish: Mapped
    ) -> Iterator[tuple[Signal, Shaped[np.ndarray, "T n"]]]:
        """See `Route.frames`."""
        batch, model, network = list(signals), self.autoencoder, self._encoder
        groups = [-(-signal.num_channels // model.num_channels) for signal in batch]
        lengths = [model.num_frames(signal.num_samples) for signal in batch]
        rows = (
            row
            for signal, count in zip(batch, groups, strict=True)
            for group in range(count)
            for row in self._audio_rows(signal, group)
        )
        # In the line of rows, a signal begins here.
        starts = np.cumsum(
            [0, *((t + network.gap) * g for t, g in zip(lengths, groups, strict=True))]
        )

        def results() -> Iterator[np.ndarray]:
            first = 0
            for host, count in passes(rows, network, self._windows):
                z = self._encoded(host)[:count]
                if not bool(torch.isfinite(z).all()):
                    row = first + int(torch.isfinite(z).all(1).logical_not().nonzero()[0])
                    name = batch[int(np.searchsorted(starts, row, side="right")) - 1].name
                    raise InputError(not_finite(f"The latents of {name}"))
                yield finish(z.T[None])[0].T.contiguous().cpu().numpy()
                first += count

        each = [(t, network.gap) for t, g in zip(lengths, groups, strict=True) for _ in range(g)]
        parts = unpacked(results(), each)
        for signal, count in zip(batch, groups, strict=True):
            yield signal, np.concatenate([next(parts) for _ in range(count)])

    def waves(
        self,
        items: Sequence[Shaped[np.ndarray, "_ _ n"]],
        begin: Mapped,
        decoder: Decoder,
        level: Float[Tensor, ""],
    ) -> Iterator[Float32[np.ndarray, "C N"]]:
        """See `Route.waves`."""
        model, network = self.autoencoder, self._packed(decoder, level)

        def rows() -> Iterator[np.ndarray]:
            for item in items:
                # Behind the frames: their states, and 1 where there is a frame.
                states = _states(item.shape[1])
                tail = np.concatenate([states, np.ones_like(states)], axis=1).astype(item.dtype)
                for frames in item:
                    yield np.concatenate([frames, tail], axis=1)
                    yield np.zeros((network.gap, item.shape[2] + 2), item.dtype)

        def results() -> Iterator[np.ndarray]:
            for host, count in passes(rows(), network, self._windows):
                line = self._filled(network, host)
                z = begin(line[:, :-2].T[None])[0].T
                line = torch.cat([z, line[:, -2:].to(z.dtype)], dim=-1)
                samples = network(line[:, :-1], line[:, -1] > 0, self._windows)
                yield samples[:count].cpu().numpy()

        each = [(item.shape[1], network.gap) for item in items for _ in item]
        parts = unpacked(results(), each)
        for item in items:
            num_samples = model.num_samples(item.shape[1])
            blocks = np.stack([next(parts) for _ in item])  # [G, T, M * hop]
            waves = blocks.reshape(*blocks.shape[:2], model.num_channels, -1).swapaxes(1, 2)
            channels = waves.reshape(len(item) * model.num_channels, -1)
            yield channels[:, :num_samples]

    def _audio_rows(self, signal: HostSignal, group: int) -> Iterator[Float32[np.ndarray, "n F"]]:
        """Samples of each frame of a group of channels, and behind them the channels' gains.

        The gains of a gap are zero, which says that it is of no signal.
        """
        model = self.autoencoder
        hop, joint = model.hop_length, model.num_channels
        # An odd last channel is paired with itself.
        channels = [min(group * joint + i, signal.num_channels - 1) for i in range(joint)]
        gains, left = signal.gain[channels], model.num_frames(signal.num_samples)

        def made(samples: np.ndarray) -> np.ndarray:
            blocks = samples.reshape(joint, -1, hop).swapaxes(0, 1).reshape(-1, joint * hop)
            return np.concatenate([blocks, np.tile(gains, (len(blocks), 1))], axis=1)

        rest = np.zeros((joint, 0), np.float32)
        for block in signal.blocks():
            rest = np.concatenate([rest, block[channels]], axis=1)
            whole = rest.shape[1] // hop * hop
            if whole:
                yield made(rest[:, :whole])
                rest, left = rest[:, whole:], left - whole // hop
        missing = left * hop - rest.shape[1]
        yield made(np.pad(rest, ((0, 0), (0, missing))))
        yield np.zeros((self._encoder.gap, joint * (hop + 1)), np.float32)

    def _encoded(self, host: Float32[np.ndarray, "R F"]) -> Float[Tensor, "R2 D"]:
        """Latents of a pass of `_audio_rows`."""
        joint = self.autoencoder.num_channels
        line = self._filled(self._encoder, host)
        samples, gains = line[:, :-joint], line[:, -joint:]
        inside = gains[:, 0] > 0
        gains = torch.where(inside[:, None], gains, 1)
        x = samples.unflatten(-1, (joint, -1)) / gains[..., None]
        z = self._encoder(x.flatten(1), inside, self._windows)
        # What gaps give is of no signal, and not finite beside one that is not.
        before = self._encoder.reach[0]
        own = inside[before : before + self._windows.rows, None]
        return torch.where(own, z, z.new_zeros(()))

    def _filled(self, network: PackedNetwork, host: np.ndarray) -> Tensor:
        """A pass on the device, with zeros for the rows that the last one lacks."""
        missing = sum(network.reach) + self._windows.rows - len(host)
        return functional.pad(self._copied(host), (0, 0, 0, missing))

    def _run(
        self, network: PackedNetwork, rows: Float[Tensor, "B T F"], inside: Tensor
    ) -> Float[Tensor, "B T F2"]:
        """Results of signals of equal length on the device, gaps included."""
        count, size = rows.shape[:2]
        line = network.with_context(rows.flatten(0, 1), self._windows)
        mask = network.with_context(inside.flatten(), self._windows)
        return network(line, mask, self._windows)[: count * size].unflatten(0, (count, size))

    def _copied(self, host: np.ndarray) -> Tensor:
        return send(torch.from_numpy(host), self._device)

    def _packed(self, decoder: Decoder, level: Float[Tensor, ""]) -> PackedNetwork:
        network = decoder.packed(level)
        if network is None:
            raise TypeError(f"{type(decoder).__name__} is not packed, though its encoder is.")
        return network


def _states(num_frames: int) -> Float32[np.ndarray, "T 1"]:
    """The `frame_states` of a signal: made on the host, where an operation costs little."""
    return frame_states(torch.arange(num_frames)).numpy()
