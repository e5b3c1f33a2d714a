"""The tokenizer on tensors: one encoder, two representations, two decoders, one checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.autoencoders import Autoencoder, Decoder, build_autoencoder
from tokenizer.autoencoders.own import as_autoencoder
from tokenizer.errors import InputError, StateError
from tokenizer.model.checkpoint import Checkpoint, module_bytes
from tokenizer.model.config import FORMAT_VERSION, LatentTokenizerConfig
from tokenizer.model.tiling import decode_tiles, encode_tiles
from tokenizer.quantizers import build_quantizer
from tokenizer.quantizers.base import Quantizer

DecoderName = Literal["continuous", "finetuned"]
T = TypeVar("T", bound="TokenizerCore")

# Silence has no level to divide by: this is added to every gain (-100 dB).
GAIN_FLOOR = 1e-5


def check_finite(x: Tensor, what: str) -> Tensor:
    """Returns ``x``; raises ValueError if it has values that float32 could not hold."""
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"{what} are not finite: what they were made of is too large, or damaged.")
    return x


def as_gains(gain: Any, count: int) -> Float32[np.ndarray, " count"]:
    """The gains of ``count`` channels, from a positive number for all or one for each."""
    try:
        values = np.asarray(gain, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"gain={gain!r:.60} is not a number.") from None
    if values.ndim > 1 or values.size not in (1, count):
        raise InputError(f"gain has shape {values.shape}; expected one number, or {count}.")
    if not bool((np.isfinite(values) & (values > 0)).all()):
        raise InputError(f"gain={gain!r:.60} must be positive and finite.")
    return np.broadcast_to(values.reshape(-1), (count,)).copy()


def _lengths(mask: Tensor, num_items: int, num_samples: int) -> list[int]:
    """Samples of each item of a batch that is padded on the right."""
    if tuple(mask.shape) != (num_items, num_samples):
        raise InputError(
            f"padding_mask has shape {tuple(mask.shape)}; expected [{num_items}, {num_samples}]."
        )
    lengths = mask.bool().sum(-1)
    expected = torch.arange(num_samples, device=mask.device) < lengths[:, None]
    if not torch.equal(mask.long(), expected.long()):
        raise InputError("padding_mask must be ones and then zeros: padding is on the right.")
    return lengths.tolist()


def _without_gradients(tiles: Iterator[Tensor]) -> Iterator[Tensor]:
    """Computes each tile without gradients; the caller's grad mode is restored between tiles.

    A plain ``with torch.no_grad()`` around a loop of ``yield`` would hold for the caller's code
    too.
    """
    while True:
        with torch.no_grad():
            tile = next(tiles, None)
        if tile is None:
            return
        yield tile


def _described(part: Autoencoder | Quantizer) -> dict[str, Any]:
    return {"kind": part.kind, **part.to_config()}


@dataclass
class EncodeOutput:
    """What `TokenizerCore.encode` returns.

    Attributes:
        latents: ``[B, D, T]``; zero past the end of shorter items.
        gain: ``[B]``: what each item was divided by; 1 for models that do not normalise.
        frame_mask: ``[B, T]``, True where a frame belongs to the item.
    """

    latents: Float[Tensor, "B D T"]
    gain: Float[Tensor, " B"]
    frame_mask: Bool[Tensor, "B T"]


class TokenizerCore(Checkpoint):
    """Everything of `tokenizer.LatentTokenizer` that takes and returns tensors.

    All of it runs without gradients and in evaluation mode. Other models can be trained on its
    tensors; code that trains the tokenizer uses `autoencoder`, `quantizer` and `finetuned_decoder`.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: LatentTokenizerConfig) -> None:
        super().__init__(config)
        if config.format_version > FORMAT_VERSION:
            raise InputError(
                f"This checkpoint has format version {config.format_version}; this library reads "
                f"up to {FORMAT_VERSION}. Update latent-tokenizer."
            )
        if config.autoencoder is None:
            raise InputError("config.autoencoder is None: name an autoencoder, e.g. kind 'lapped'.")
        self.autoencoder: Autoencoder = build_autoencoder(config.autoencoder)
        self.finetuned_decoder: Decoder | None = (
            build_autoencoder(config.autoencoder).decoder if config.has_finetuned_decoder else None
        )
        self.quantizer: Quantizer | None = (
            None if config.quantizer is None else build_quantizer(config.quantizer)
        )
        dim = self.autoencoder.latent_dim
        self.register_buffer("latents_mean", torch.zeros(dim))
        self.register_buffer("latents_std", torch.ones(dim))
        self.eval()
        self.post_init()

    # What the tokenizer is

    @property
    def sampling_rate(self) -> int:
        """Hz of the audio that goes in and comes out."""
        return self.autoencoder.sampling_rate

    @property
    def hop_length(self) -> int:
        """Samples per latent frame."""
        return self.autoencoder.hop_length

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sampling_rate / self.hop_length

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.autoencoder.latent_dim

    @property
    def coded_dim(self) -> int:
        """How many latents, the first of D, codes stand for; methods take these alone, too."""
        return self.autoencoder.coded_dim

    @property
    def num_codebooks(self) -> int:
        """K of the fitted quantizer."""
        return self._fitted_quantizer().num_codebooks

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of each codebook."""
        return self._fitted_quantizer().codebook_sizes

    @property
    def codebook_size(self) -> int:
        """Entries of every codebook; raises ValueError where they differ (see `codebook_sizes`)."""
        sizes = set(self.codebook_sizes)
        if len(sizes) > 1:
            raise InputError(f"The codebooks differ in size: {self.codebook_sizes}.")
        return sizes.pop()

    def bitrate(self, n_codebooks: int | None = None) -> float:
        """Bits per second and channel group of the first n codebooks (default: all)."""
        n = self._check_n_codebooks(n_codebooks)
        bits = torch.tensor(self.codebook_sizes[:n], dtype=torch.float64).log2().sum()
        return self.frame_rate * float(bits)

    def codebooks_for(self, bitrate: float | int) -> int:
        """The most codebooks that fit into ``bitrate`` bit/s; ValueError if none does."""
        fitting = [n for n in range(1, self.num_codebooks + 1) if self.bitrate(n) <= bitrate + 1e-6]
        if not fitting:
            raise InputError(
                f"bitrate={bitrate:g} bit/s is below one codebook's {self.bitrate(1):g} bit/s."
            )
        return fitting[-1]

    @property
    def codes_fingerprint(self) -> str:
        """Sixteen hex digits: a hash of encoder and quantizer, which decide what codes mean.

        Unlike `fingerprint`, it stays when a decoder is finetuned or detail or noise is added.
        """
        quantizer = self._fitted_quantizer()

        def compute() -> str:
            coded = self.autoencoder.for_codes()
            config = self.config.autoencoder if coded is self.autoencoder else _described(coded)
            digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
            for part in (coded.encoder, quantizer):
                digest.update(module_bytes(part))
            return digest.hexdigest()[:16]

        return self.cached_hash("codes", (self.autoencoder, quantizer), compute)

    @property
    def code_counts(self) -> np.ndarray | None:
        """How often each code occurred in fitting, int64 ``[K, S]``; None if that is not kept."""
        counts = getattr(self._fitted_quantizer(), "code_counts", None)
        return None if counts is None else counts.cpu().numpy()

    def _fitted_quantizer(self) -> Quantizer:
        if self.quantizer is None or not bool(self.quantizer.fitted):
            raise StateError(
                "This tokenizer has no fitted quantizer yet, so it has latents but no codes. Fit "
                "one: `latok fit MODEL AUDIO --out DIR`."
            )
        return self.quantizer

    def _check_n_codebooks(self, n_codebooks: int | None) -> int:
        available = self._fitted_quantizer().num_codebooks
        n = available if n_codebooks is None else n_codebooks
        if isinstance(n, bool) or not isinstance(n, Integral) or not 1 <= n <= available:
            raise InputError(f"n_codebooks={n!r:.60} is not in 1..{available}.")
        return int(n)

    def decoder(self, name: DecoderName) -> Decoder:
        """The decoder of that name; raises if the checkpoint lacks it."""
        if name == "continuous":
            return self.autoencoder.decoder
        if name != "finetuned":
            raise InputError(f"decoder={name!r} is neither 'continuous' nor 'finetuned'.")
        if self.finetuned_decoder is None:
            raise StateError(
                "This tokenizer has no finetuned decoder yet. Make one: `latok finetune MODEL "
                "AUDIO --out DIR`, or ask for decoder='continuous'."
            )
        return self.finetuned_decoder

    @property
    def codes_decoder(self) -> DecoderName:
        """The default decoder for codes: "finetuned" where there is one."""
        return "continuous" if self.finetuned_decoder is None else "finetuned"

    # Tensors in, tensors out

    # These methods use no_grad and not inference_mode: tensors that are made in inference mode can
    # never again take part in training, not even as constants.
    @torch.no_grad()
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
        if not bool(torch.isfinite(input_values).all()):
            raise InputError("input_values holds NaN or infinite samples.")
        x = input_values.to(self.device, torch.float32)
        if padding_mask is None:
            lengths = [x.shape[-1]] * len(x)
        else:
            lengths = _lengths(padding_mask, len(x), x.shape[-1])
        if x.shape[-1] == 0 or min(lengths, default=1) == 0:
            raise InputError("input_values holds an item without samples.")
        fixed = None if gain is None else self.check_gain(gain.cpu().numpy(), len(x)).tolist()
        gains, latents = [], []
        for i, (item, length) in enumerate(zip(x, lengths, strict=True)):
            audio = item[:, :length]
            measured = self.measure_gain(audio.double().square().mean(), audio.abs().max())
            gains.append(measured if fixed is None else fixed[i])
            tiles = encode_tiles(self.autoencoder, [audio[None] / gains[-1]])
            latents.append(check_finite(torch.cat(list(tiles), dim=-1)[0], "The audio's latents"))
        frames = [z.shape[-1] for z in latents]
        out = x.new_zeros(len(x), self.latent_dim, max(frames, default=0))
        for row, z in zip(out, latents, strict=True):
            row[:, : z.shape[-1]] = z
        ends = torch.tensor(frames, dtype=torch.int64, device=x.device)
        mask = torch.arange(out.shape[-1], device=x.device) < ends[:, None]
        return EncodeOutput(out, torch.tensor(gains, device=x.device), mask)

    def measure_gain(self, mean_square: Tensor | float, largest: Tensor | float) -> float:
        """What audio of this mean square and largest magnitude is divided by before encoding."""
        if not self.autoencoder.normalize:
            return 1.0
        peak = self.autoencoder.peak
        level = float(mean_square) ** 0.5 if peak is None else float(largest) / peak
        return float(torch.tensor(level + GAIN_FLOOR, dtype=torch.float32))

    def check_gain(self, gain: Any, count: int) -> Float32[np.ndarray, " count"]:
        """A given gain, or `default_gain` for None, for each of ``count`` channels.

        ValueError if it is not positive, or not 1 where the model does not normalise.
        """
        values = as_gains(self.default_gain if gain is None else gain, count)
        if not self.autoencoder.normalize and bool((values != 1).any()):
            raise InputError(f"gain={gain!r:.60}, but this model takes audio at its own level.")
        return values

    @torch.no_grad()
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
        if n_codebooks is None:
            return 0.0
        n = self._check_n_codebooks(n_codebooks)
        return float(self._fitted_quantizer().noise_levels[n - 1])

    @torch.no_grad()
    def decode(
        self,
        latents: Float[Tensor, "B D T"],
        *,
        decoder: DecoderName,
        n_codebooks: int | None = None,
        gain: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents into audio.

        Args:
            latents: Exact, generated or dequantized.
            decoder: "continuous" for exact latents, "finetuned" for dequantized ones.
            n_codebooks: How many codebooks dequantized latents come from, which says how noisy they
                are. None for latents that were not quantized.
            gain: Multiplies each item. Default: `default_gain`.

        Returns:
            ``autoencoder.num_samples(T)`` samples, at least as many as went into `encode`.
        """
        z = self.pad_detail(latents)
        if not bool(torch.isfinite(z).all()):
            raise InputError("latents hold NaN or infinite values.")
        gains = z.new_full((len(z),), self.default_gain) if gain is None else gain.to(z)
        if gains.shape != (len(z),) or not bool(torch.isfinite(gains).all()):
            raise InputError(f"gain is {gains.tolist()!r:.60}; expected {len(z)} finite numbers.")
        items = []
        for item, scale in zip(z, gains, strict=True):
            pieces = self.decode_stream([item[None]], decoder, n_codebooks)
            items.append(torch.cat(list(pieces), dim=-1)[0] * scale)
        if not items:
            return z.new_zeros(0, self.autoencoder.num_channels, 0)
        return check_finite(torch.stack(items), "The decoded audio")

    @property
    def default_gain(self) -> float:
        """The gain where none is known; 1 for models that do not normalise."""
        return float(self.config.default_gain) if self.autoencoder.normalize else 1.0

    def encode_stream(
        self, blocks: Iterable[Float[Tensor, "G M _"]]
    ) -> Iterator[Float[Tensor, "G D _"]]:
        """Latents of a normalised signal that arrives in blocks: see `encode_tiles`."""
        with torch.no_grad():
            tiles = encode_tiles(self.autoencoder, blocks)
        yield from _without_gradients(tiles)

    def decode_stream(
        self,
        latents: Iterable[Float[Tensor, "G D _"]],
        decoder: DecoderName,
        n_codebooks: int | None,
    ) -> Iterator[Float[Tensor, "G M _"]]:
        """Normalised audio of latents that arrive in pieces: see `decode_tiles`."""
        level = self.noise_level(n_codebooks)
        with torch.no_grad():
            tiles = decode_tiles(self.autoencoder, self.decoder(decoder), latents, level)
        yield from _without_gradients(tiles)

    def forward(
        self, input_values: Float[Tensor, "B C N"], n_codebooks: int | None = None
    ) -> Float[Tensor, "B C N"]:
        """Audio to codes and back, at the same length; ``n_codebooks`` as in `quantize`."""
        n = self._check_n_codebooks(n_codebooks)
        encoded = self.encode(input_values)
        latents = self.dequantize(self.quantize(encoded.latents, n))
        audio = self.decode(latents, decoder=self.codes_decoder, n_codebooks=n, gain=encoded.gain)
        return audio[..., : input_values.shape[-1]]

    # Latents for diffusion

    def normalize_latents(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """Latents with mean 0 and deviation 1 in every channel, as diffusion models want them."""
        dim = latents.shape[1]
        return (latents - self.latents_mean[:dim, None]) / self.latents_std[:dim, None]

    def denormalize_latents(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """Inverse of `normalize_latents`."""
        dim = latents.shape[1]
        return latents * self.latents_std[:dim, None] + self.latents_mean[:dim, None]

    # Stages

    @classmethod
    def from_autoencoder(cls: type[T], autoencoder: Autoencoder | nn.Module) -> T:
        """Wraps a trained autoencoder; its codes come with `set_quantizer`.

        It may be a module of one's own, of a class that `register_autoencoder` knows.
        """
        model = as_autoencoder(autoencoder)
        tokenizer = cls(LatentTokenizerConfig(autoencoder=_described(model)))
        tokenizer.autoencoder.load_state_dict(model.state_dict())
        if model.latent_statistics is not None:
            mean, std = model.latent_statistics
            tokenizer.latents_mean.copy_(torch.tensor(mean))
            tokenizer.latents_std.copy_(torch.tensor(std))
        if model.peak is not None:
            tokenizer.config.default_gain = 1.0  # what a decoder makes of generated latents
        return tokenizer

    def set_quantizer(self: T, quantizer: Quantizer) -> T:
        """Puts a fitted quantizer in place; a decoder finetuned for the previous one is dropped."""
        if quantizer.dim != self.coded_dim:
            raise InputError(
                f"The quantizer has {quantizer.dim} dimensions, the coded latents {self.coded_dim}."
            )
        if not bool(quantizer.fitted):
            raise StateError("The quantizer is not fitted: call its fit() first.")
        self.quantizer = quantizer.to(self.device)
        self.finetuned_decoder = None
        self.update_config()
        return self

    def add_finetuned_decoder(self) -> Decoder:
        """Starts a finetuned decoder as a copy of the continuous one, and returns it."""
        self.finetuned_decoder = deepcopy(self.autoencoder.decoder)
        self.update_config()
        return self.finetuned_decoder

    def update_config(self) -> None:
        """Writes into ``config`` what quantizer and decoder are now, e.g. another beam width."""
        self.config.quantizer = None if self.quantizer is None else _described(self.quantizer)
        self.config.has_finetuned_decoder = self.finetuned_decoder is not None
