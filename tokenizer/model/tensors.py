"""The tokenizer on tensors: encode, quantize, dequantize, decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from tokenizer.errors import InputError
from tokenizer.model.bucket_route import BucketRoute
from tokenizer.model.gains import as_gains, measured_gain
from tokenizer.model.packed_route import PackedRoute
from tokenizer.model.parts import DecoderName, TokenizerParts
from tokenizer.model.routes import Route, not_finite
from tokenizer.model.tiling import decode_tiles, encode_tiles
from tokenizer.networks.packing import Windows
from tokenizer.precision import full_float32, networks_in


def check_finite(x: Tensor, what: str) -> Tensor:
    """Returns ``x``; raises ValueError if it has values that float32 could not hold."""
    if not bool(torch.isfinite(x).all()):
        raise InputError(not_finite(what))
    return x


def _lengths(mask: Tensor, num_items: int, num_samples: int) -> list[int]:
    """Samples of each item of a batch that is padded on the right."""
    if tuple(mask.shape) != (num_items, num_samples):
        raise InputError(
            f"padding_mask has shape {tuple(mask.shape)}; expected [{num_items}, {num_samples}]."
        )
    lengths = mask.bool().sum(-1)
    expected = torch.arange(num_samples, device=mask.device) < lengths[:, None]
    # Read at once: a device is waited for each time.
    is_right = (mask.long() == expected.long()).all()
    *numbers, right = torch.cat([lengths, is_right.long()[None]]).tolist()
    if not right:
        raise InputError("padding_mask must be ones and then zeros: padding is on the right.")
    return numbers


def _check_each(values: dict[str, Tensor]) -> None:
    """Raises ValueError with the message of the first tensor that is not finite.

    All are looked at on their device, which is waited for once.
    """
    finite = torch.stack([torch.isfinite(x).all() for x in values.values()]).tolist()
    for message, passed in zip(values, finite, strict=True):
        if not passed:
            raise InputError(message)


def _without_gradients(
    tiles: Iterator[Tensor], dtype: torch.dtype, device: torch.device
) -> Iterator[Tensor]:
    """Computes each tile without gradients, networks in ``dtype`` and all else in full float32.

    Between tiles the caller's modes hold.

    A plain ``with torch.no_grad()`` around a loop of ``yield`` would hold for the caller's code
    too.
    """
    while True:
        with torch.no_grad(), networks_in(dtype, device):
            tile = next(tiles, None)
        if tile is None:
            return
        yield tile


@dataclass
class EncodeOutput:
    """What `TensorTokenizer.encode` returns.

    Attributes:
        latents: ``[B, D, T]``; zero past the end of shorter items.
        gain: ``[B]``: what each item was divided by; 1 for models that do not normalise.
        frame_mask: ``[B, T]``, True where a frame belongs to the item.
        tokenizer: What encoded them.
    """

    latents: Float[Tensor, "B D T"]
    gain: Float[Tensor, " B"]
    frame_mask: Bool[Tensor, "B T"]
    tokenizer: TensorTokenizer = field(repr=False)

    @cached_property
    def audio_codes(self) -> Int[Tensor, "B K T"]:
        """Codes from all codebooks; they are searched when they are first asked for."""
        return self.tokenizer.quantize(self.latents)


class TensorTokenizer(TokenizerParts):
    """Everything of `tokenizer.LatentTokenizer` that takes and returns tensors.

    All of it runs without gradients, in evaluation mode and in full float32 (`full_float32`). Other
    models can be trained on its tensors; code that trains the tokenizer uses `autoencoder`,
    `quantizer` and `finetuned_decoder`.

    Attributes:
        windows: The shape of what is computed at once where signals are computed together
            (`PackedRoute`). None: signals in turn on a CPU, `Windows` as they are elsewhere.
        network_dtype: In which the encoder's networks compute: with ``torch.bfloat16`` faster where
            the device is, with slightly different codes (docs/performance.md). What carries the
            waveform, the search and decoders stay in float32.
    """

    settings: ClassVar[tuple[str, ...]] = ("windows", "network_dtype")
    windows: Windows | None = None
    network_dtype: torch.dtype = torch.float32

    @property
    def route(self) -> Route:
        """How signals pass through the autoencoder: in turn, or all of a batch together."""
        windows = self.windows
        if windows is None:
            if self.device.type == "cpu":
                return Route(self.autoencoder)
            windows = Windows()
        encoder, decoder = self.autoencoder.encoder.packed(), self.autoencoder.decoder
        if encoder is None or decoder.packed(self.noise_tensor(None)) is None:
            return BucketRoute(self.autoencoder, self.device)
        return PackedRoute(self.autoencoder, encoder, self.device, windows)

    # These methods use no_grad and not inference_mode: tensors that are made in inference mode can
    # never again take part in training, not even as constants.
    @torch.no_grad()
    @full_float32()
    def encode(
        self,
        input_values: Float[Tensor, "B C N"],
        padding_mask: Bool[Tensor, "B N"] | Int[Tensor, "B N"] | None = None,
        *,
        gain: Float[Tensor, " B"] | None = None,
    ) -> EncodeOutput:
        """Encodes a batch of audio at `sampling_rate`.

        Args:
            input_values: As many channels as the autoencoder codes jointly: 1, or 2 for stereo
                models.
            padding_mask: 1 for samples, 0 for the padding on their right. Default: all are samples.
            gain: What each item is divided by. Default: its root mean square.

        Raises:
            ValueError: For another number of channels, empty items, NaN, infinity or such a gain.
        """
        channels = self.autoencoder.num_channels
        if input_values.ndim != 3 or input_values.shape[1] != channels:
            raise InputError(
                f"input_values has shape {tuple(input_values.shape)}; expected [B, {channels}, N]."
            )
        if not input_values.is_floating_point():
            raise InputError(
                f"input_values are {input_values.dtype}; expected floating point, full scale 1."
            )
        x = input_values.to(self.device, torch.float32)
        if padding_mask is None:
            lengths = [x.shape[-1]] * len(x)
        else:
            lengths = _lengths(padding_mask, len(x), x.shape[-1])
        if x.shape[-1] == 0 or min(lengths, default=1) == 0:
            raise InputError("input_values holds an item without samples.")
        fixed = None if gain is None else self.check_gain(gain.cpu().numpy(), len(x))
        with networks_in(self.network_dtype, self.device):
            latents, gains = self.route.latents(x, lengths, fixed)
        _check_each(
            {
                "input_values holds NaN or infinite samples.": x,
                not_finite("The audio's latents"): latents,
            }
        )
        ends = torch.tensor([self.autoencoder.num_frames(n) for n in lengths]).to(x.device)
        mask = torch.arange(latents.shape[-1], device=x.device) < ends[:, None]
        return EncodeOutput(latents, gains, mask, self)

    def measure_gain(self, mean_square: Tensor | float, largest: Tensor | float) -> float:
        """What audio of this mean square and largest magnitude is divided by before encoding."""
        return measured_gain(self.autoencoder, mean_square, largest)

    def check_gain(self, gain: Any, count: int) -> Float32[np.ndarray, " count"]:
        """A given gain, or `default_gain` for None, for each of ``count`` channels.

        ValueError if it is not positive, or not 1 where the model does not normalise.
        """
        values = as_gains(self.default_gain if gain is None else gain, count)
        if not self.autoencoder.normalize and bool((values != 1).any()):
            raise InputError(f"gain={gain!r:.60}, but this model takes audio at its own level.")
        return values

    @torch.no_grad()
    @full_float32()
    def quantize(
        self, latents: Float[Tensor, "B D T"], n_codebooks: int | None = None
    ) -> Int[Tensor, "B n T"]:
        """Codes (int64) of latents, from the first ``n_codebooks`` codebooks (default: all)."""
        n = self._check_n_codebooks(n_codebooks)
        quantizer = self._fitted_quantizer()
        z = self.pad_detail(latents)[:, : self.coded_dim].transpose(1, 2)
        # A search is many small steps, and inference mode makes it 5% faster. The copy below is
        # made outside of that mode, so it can be used for training.
        with torch.inference_mode():
            codes = quantizer.encode(z.reshape(-1, self.coded_dim).contiguous(), n)
        return codes.clone().reshape(len(z), -1, n).transpose(1, 2)

    @torch.no_grad()
    @full_float32()
    def quantize_each(
        self, latents: Float[Tensor, "B D T"], n_codebooks: Sequence[int]
    ) -> list[Int[Tensor, "n T"]]:
        """Codes of each item from its own number of codebooks, in one search; see `quantize`."""
        counts = np.array([self._check_n_codebooks(n) for n in n_codebooks])
        z = self.pad_detail(latents)[:, : self.coded_dim].transpose(1, 2)
        frames = z.reshape(-1, self.coded_dim).contiguous()
        with torch.inference_mode():
            found = self._fitted_quantizer().encode_each(frames, counts.repeat(z.shape[1]))
        codes = found.clone().reshape(len(z), z.shape[1], -1).transpose(1, 2)
        return [item[:n] for item, n in zip(codes, counts.tolist(), strict=True)]

    @torch.no_grad()
    @full_float32()
    def dequantize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, audio_codes: Int[Tensor, "B n T"]
    ) -> Float[Tensor, "B D T"]:
        """Latents from the codes of the first n codebooks; ValueError for codes out of range."""
        if audio_codes.ndim != 3:
            raise InputError(f"audio_codes have shape {tuple(audio_codes.shape)}, not [B, n, T].")
        self._check_n_codebooks(audio_codes.shape[1])
        codes = audio_codes.to(self.device, torch.int64)
        flat = codes.transpose(1, 2).reshape(-1, codes.shape[1])
        z = self._fitted_quantizer().decode(flat)
        z = self.pad_detail(z.reshape(len(codes), codes.shape[2], -1).transpose(1, 2))
        # A view that was made under no_grad cannot be changed in place when gradients are on;
        # detach() gives a tensor that can.
        return z.detach()

    @torch.no_grad()
    @full_float32()
    def dequantize_each(self, audio_codes: Sequence[Int[Tensor, "_ T"]]) -> Float[Tensor, "B D T"]:
        """Latents of what `quantize_each` returns, all items together; see `dequantize`."""
        counts = np.array([self._check_n_codebooks(len(item)) for item in audio_codes])
        # Behind the codes of items with fewer codebooks are some that do not count.
        codes = pad_sequence(list(audio_codes), batch_first=True).to(self.device, torch.int64)
        codes = codes.transpose(1, 2)
        each = counts.repeat(codes.shape[1])
        z = self._fitted_quantizer().decode_each(codes.flatten(0, 1), each)
        return self.pad_detail(z.unflatten(0, codes.shape[:2]).transpose(1, 2)).detach()

    def pad_detail(self, latents: Float[Tensor, "B d T"]) -> Float[Tensor, "B D T"]:
        """Latents in float32 where the tokenizer is, with zeros for detail that they lack."""
        missing = self.latent_dim - (latents.shape[1] if latents.ndim == 3 else 0)
        if missing not in (0, self.latent_dim - self.coded_dim):
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; expected [B, {self.latent_dim}, T]."
            )
        z = latents.to(self.device, torch.float32)
        return functional.pad(z, (0, 0, 0, missing)) if missing else z

    def noise_level(self, n_codebooks: int | None) -> float:
        """Relative RMS error of latents from the first n codebooks; 0 for None (exact)."""
        return float(self.noise_tensor(n_codebooks))

    def noise_tensor(self, n_codebooks: int | None) -> Float[Tensor, ""]:
        """The same, not read from the device."""
        if n_codebooks is None:
            return self.latents_mean.new_zeros(())
        n = self._check_n_codebooks(n_codebooks)
        return self._fitted_quantizer().noise_levels[n - 1]

    @torch.no_grad()
    @full_float32()
    def decode(
        self,
        latents: Float[Tensor, "B D T"],
        *,
        decoder: DecoderName | None = None,
        n_codebooks: int | None = None,
        gain: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents into audio.

        Args:
            latents: Exact, generated or dequantized.
            decoder: "continuous" for exact latents, which is the default for them, or "finetuned"
                for dequantized ones, which have `codes_decoder` as default.
            n_codebooks: How many codebooks dequantized latents come from, which says how noisy they
                are. None for latents that were not quantized.
            gain: Multiplies each item. Default: `default_gain`.

        Returns:
            ``autoencoder.num_samples(T)`` samples, at least as many as went into `encode`.
        """
        if decoder is None:
            decoder = "continuous" if n_codebooks is None else self.codes_decoder
        z = self.pad_detail(latents)
        gains = z.new_full((len(z),), self.default_gain) if gain is None else gain.to(z)
        if gains.shape != (len(z),):
            raise InputError(f"gain has shape {list(gains.shape)}; expected {len(z)} numbers.")
        level = self.noise_tensor(n_codebooks)
        audio = self.route.audio(z, self.decoder(decoder), level) * gains[:, None, None]
        _check_each(
            {
                "latents hold NaN or infinite values.": z,
                "gain holds NaN or infinite numbers.": gains,
                not_finite("The decoded audio"): audio,
            }
        )
        return audio

    @property
    def default_gain(self) -> float:
        """The gain where none is known; 1 for models that do not normalise."""
        return float(self.config.default_gain) if self.autoencoder.normalize else 1.0

    def encode_stream(
        self, blocks: Iterable[Float[Tensor, "G M _"]]
    ) -> Iterator[Float[Tensor, "G D _"]]:
        """Latents of a normalised signal that arrives in blocks: see `encode_tiles`."""
        with torch.no_grad(), full_float32():
            tiles = encode_tiles(self.autoencoder, blocks)
        yield from _without_gradients(tiles, self.network_dtype, self.device)

    def decode_stream(
        self,
        latents: Iterable[Float[Tensor, "G D _"]],
        decoder: DecoderName,
        n_codebooks: int | None,
    ) -> Iterator[Float[Tensor, "G M _"]]:
        """Normalised audio of latents that arrive in pieces: see `decode_tiles`."""
        level = self.noise_level(n_codebooks)
        with torch.no_grad(), full_float32():
            tiles = decode_tiles(self.autoencoder, self.decoder(decoder), latents, level)
        yield from _without_gradients(tiles, torch.float32, self.device)

    # Latents for diffusion

    def normalize_latents(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """Latents with mean 0 and deviation 1 in every channel, as diffusion models want them."""
        dim = latents.shape[1]
        return (latents - self.latents_mean[:dim, None]) / self.latents_std[:dim, None]

    def denormalize_latents(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """Inverse of `normalize_latents`."""
        dim = latents.shape[1]
        return latents * self.latents_std[:dim, None] + self.latents_mean[:dim, None]
