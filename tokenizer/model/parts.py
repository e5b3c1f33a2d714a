"""What a tokenizer consists of: encoder, quantizer, decoders and the numbers that relate them."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from numbers import Integral
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tokenizer.autoencoders import Autoencoder, Decoder, build_autoencoder
from tokenizer.autoencoders.own import as_autoencoder
from tokenizer.errors import InputError, StateError
from tokenizer.model.checkpoint import Checkpoint, module_bytes
from tokenizer.model.core_config import FORMAT_VERSION, TokenizerConfig
from tokenizer.quantizers import build_quantizer
from tokenizer.quantizers.base import Quantizer

DecoderName = Literal["continuous", "finetuned"]
T = TypeVar("T", bound="TokenizerParts")


def _described(part: Autoencoder | Quantizer) -> dict[str, Any]:
    return {"kind": part.kind, **part.to_config()}


class TokenizerParts(Checkpoint):
    """An autoencoder and, once they are there, a quantizer and a decoder finetuned for it."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.build()

    def build(self) -> None:
        """Makes the modules that the configuration describes, untrained."""
        config = self.config
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
        if self.quantizer is None or not self.quantizer.is_fitted:
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

    # Stages

    @classmethod
    def from_autoencoder(cls: type[T], autoencoder: Autoencoder | nn.Module) -> T:
        """Wraps a trained autoencoder; its codes come with `set_quantizer`.

        It may be a module of one's own, of a class that `register_autoencoder` knows.
        """
        model = as_autoencoder(autoencoder)
        tokenizer = cls(cls.config_class(autoencoder=_described(model)))
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
        if not quantizer.is_fitted:
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
