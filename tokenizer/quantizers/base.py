"""What a quantizer is: fitted on latents, turns vectors into codes and back."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.errors import InputError, StateError
from tokenizer.quantizers.measure import FitReport, measure, report
from tokenizer.quantizers.sources import LatentSource, sample_frames

Q = TypeVar("Q", bound="Quantizer")

# Code files and int32 rows hold no larger codes.
LARGEST_CODEBOOK = 2**16
# Latents that `measure` looks at.
_MEASURED = 65_536
# Squares of larger values, summed, overflow float32.
_LARGEST = 1e15


@dataclass(frozen=True)
class FitContext:
    """What is available to a fit besides the latents; a quantizer takes from it what it needs.

    Attributes:
        generator: Source of randomness.
        sensitivity: Computes how much an error in the latents changes the decoder's output, a
            matrix ``[D, D]``.
        checkpoint: File in which a fit by gradient descent keeps its state to resume from; None
            keeps none.
        progress: Whether to show bars.
    """

    generator: torch.Generator
    sensitivity: Callable[[], Tensor]
    checkpoint: Path | None = None
    progress: bool = False


class Quantizer(nn.Module, ABC):
    """Maps latent frames to one code per codebook, and codes to latent frames.

    A quantizer of your own is a class with a `kind`, a constructor, `fit`, `encode` and `decode`
    (docs/quantizers.md). Every argument of the constructor is kept as an attribute of the same
    name. What `fit` learns goes into buffers that the constructor registers in their final shapes.
    Codes and latents are computed in full float32, whatever a script allows. `fit` on an already
    fitted quantizer forgets the first fit.

    Ours have in common that ``dim`` is D, ``num_codebooks`` K and ``codebook_size`` S, the entries
    of each codebook; that `fit` keeps at most ``max_points`` frames in memory; and that
    ``iterations`` are those of training or k-means.

    Attributes:
        kind: The name under which configs and checkpoints know this quantizer.
        dim: D.
        codebook_sizes: Entries of each codebook.
        fitted: Bool buffer of shape ``[]``.
        noise_levels: Float32 buffer ``[K]``: RMS error of the latents reconstructed from the first
            n codebooks over the latents' overall RMS deviation from their mean, measured by `fit`.
        code_counts: int64 buffer ``[K, S]``, S the largest codebook's size: how often each code
            occurred in the latents measured. Code files are range-coded with it.

    Raises:
        ValueError: If a number is below 1, or a codebook has more than 65,536 entries.
    """

    kind: ClassVar[str]
    dim: int
    codebook_sizes: tuple[int, ...]
    fitted: Tensor
    noise_levels: Tensor
    code_counts: Tensor
    # The buffer `fitted` when it was last read: the tensor, its version and its value.
    _known_flag: tuple[Tensor, int, bool] | None = None

    def __init__(self, dim: int, codebook_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = tuple(codebook_sizes)
        check_at_least_one(dim=dim, num_codebooks=len(sizes), codebook_size=min(sizes, default=1))
        if max(sizes) > LARGEST_CODEBOOK:
            raise InputError(f"A codebook of {max(sizes)} entries; at most 65,536 are possible.")
        self.dim = dim
        self.codebook_sizes = sizes
        self.register_buffer("noise_levels", torch.zeros(len(sizes)))
        self.register_buffer("code_counts", torch.zeros(len(sizes), max(sizes), dtype=torch.int64))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.codebook_sizes)

    @property
    def prefix_codes(self) -> bool:
        """Whether the codes of n codebooks are the first n of those of more: not with a beam."""
        return getattr(self, "beam_width", 1) == 1

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has ended.

        The buffer `fitted` is read only if it has changed, as a device is waited for each time.
        """
        flag = self.fitted
        if flag.is_inference():  # It does not count its changes.
            return bool(flag)
        known = self._known_flag
        if known is None or known[0] is not flag or known[1] != flag._version:
            known = self._known_flag = (flag, flag._version, bool(flag))
        return known[2]

    @abstractmethod
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> Quantizer:
        """Fits all parameters to the latents, calls `measure`, and returns ``self``."""

    def fit_with(self, latents: LatentSource, context: FitContext) -> Quantizer:
        """Calls `fit` with what this quantizer needs of the context, and returns ``self``.

        Quantizers whose `fit` has more arguments than the generator override it.
        """
        return self.fit(latents, generator=context.generator, progress=context.progress)

    @abstractmethod
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes (int64) of the first ``n_codebooks`` codebooks (default: all) for each frame.

        The codes of a frame must not depend on the other frames of the call, not even in their
        last bits: chunks and batches rely on it.

        Raises:
            RuntimeError: If the quantizer is not fitted.
            ValueError: If latents are of another dimension, not finite or beyond 1e15, or a number
                is out of range.
        """

    @abstractmethod
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, float32, from the codes of the first n codebooks, 1 <= n <= K.

        Raises:
            RuntimeError: If the quantizer is not fitted.
            ValueError: If there are too many codebooks, or a code is out of range.
        """

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON values."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise TypeError(
                f"{type(self).__name__} does not keep its constructor's {', '.join(missing)} as an "
                "attribute of the same name, so it cannot be saved."
            )
        values = {name: getattr(self, name) for name in names}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_config(cls: type[Q], config: dict[str, Any]) -> Q:
        """Builds an unfitted quantizer from what `to_config` returned."""
        for name, parameter in inspect.signature(cls).parameters.items():
            value = config.get(name)
            if parameter.annotation in (int, "int") and isinstance(value, float):
                raise InputError(f"{name} of the {cls.kind} quantizer is {value}: not an integer.")
        try:
            return cls(**config)
        except TypeError as error:
            raise InputError(f"Not a configuration of the {cls.kind} quantizer: {error}.") from None

    @property
    def report(self) -> FitReport:
        """What `fit` measured; RuntimeError if the quantizer is not fitted."""
        self.check_fitted()
        return report(self.code_counts, self.noise_levels, self.codebook_sizes)

    # For subclasses

    @torch.no_grad()
    def measure(self: Q, latents: LatentSource, *, progress: bool = False) -> Q:
        """Ends a fit: fills `noise_levels` and `code_counts`, sets `fitted`, and returns ``self``.

        At most 65,536 latents, always the same sample of them, are encoded and decoded.
        """
        self.fitted.fill_(True)
        try:
            frames = sample_frames(latents, _MEASURED, torch.Generator().manual_seed(0))
            counts, noise = measure(
                self.encode,
                self.decode,
                frames.to(self.fitted.device),
                self.codebook_sizes,
                prefix_codes=self.prefix_codes,
                progress=progress,
            )
        except BaseException:
            self.fitted.fill_(False)
            raise
        self.code_counts.copy_(counts)
        self.noise_levels.copy_(noise)
        return self

    def check_fitted(self) -> None:
        """Raises RuntimeError if the quantizer is not fitted."""
        if not self.is_fitted:
            raise StateError(
                "This quantizer is not fitted yet, so it has no codes: run `latok fit`, or call "
                "its .fit() with latents."
            )

    def training_sample(
        self, latents: LatentSource, max_points: int, generator: torch.Generator
    ) -> Float[Tensor, "M D"]:
        """Begins a fit: at most ``max_points`` of the latents, on this quantizer's device.

        Raises:
            ValueError: If the latents are empty, of another dimension or not finite.
        """
        if latents.dim != self.dim:
            raise InputError(f"The latents have {latents.dim} dimensions, not {self.dim}.")
        if len(latents) == 0:
            raise InputError("There are no latents to fit a quantizer to.")
        frames = sample_frames(latents, max_points, generator).to(self.fitted.device)
        check_values(frames)
        self.fitted.fill_(False)
        return frames

    def encode_each(
        self, latents: Float[Tensor, "M D"], counts: Int[np.ndarray, " M"]
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame's own number of codebooks, as `encode` finds them; 0 behind them."""
        codes = torch.zeros(len(latents), int(counts.max()), dtype=torch.int64)
        codes = codes.to(latents.device)
        for n in np.unique(counts).tolist():
            rows = torch.from_numpy(counts == n).to(latents.device)
            codes[rows, :n] = self.encode(latents[rows], n)
        return codes

    def decode_each(
        self, codes: Int[Tensor, "M n"], counts: Int[np.ndarray, " M"]
    ) -> Float[Tensor, "M D"]:
        """Latents of each frame's own number of codebooks; codes behind them do not count."""
        latents = self.noise_levels.new_zeros(len(codes), self.dim)
        for n in np.unique(counts).tolist():
            rows = torch.from_numpy(np.flatnonzero(counts == n)).to(codes.device)
            latents[rows] = self.decode(codes[rows, :n])
        return latents

    def checked_latents(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None
    ) -> tuple[Float[Tensor, "M D"], int]:
        """The arguments of `encode`, checked, in float32 and with the number filled in."""
        self.check_fitted()
        n = self.num_codebooks if n_codebooks is None else n_codebooks
        if not 1 <= n <= self.num_codebooks:
            raise InputError(f"n_codebooks is {n}; it must be 1 to {self.num_codebooks}.")
        if latents.ndim != 2 or latents.shape[1] != self.dim or not latents.is_floating_point():
            raise InputError(
                f"Latents are {latents.dtype} of shape {tuple(latents.shape)}; expected floating "
                f"point of shape [M, {self.dim}]."
            )
        check_values(latents)
        return latents.float(), n

    def checked_codes(self, codes: Int[Tensor, "M n"]) -> Int[Tensor, "M n"]:
        """The argument of `decode`, checked, as int64."""
        self.check_fitted()
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= self.num_codebooks:
            raise InputError(
                f"Codes have shape {tuple(codes.shape)}; expected [M, n] with n from 1 to "
                f"{self.num_codebooks}."
            )
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise InputError(f"Codes are {codes.dtype}; expected integers.")
        codes = codes.long()
        if len(codes):
            low, high = torch.stack([codes.amin(0), codes.amax(0)]).tolist()
            for k, size in enumerate(self.codebook_sizes[: len(low)]):
                if low[k] < 0 or high[k] >= size:
                    raise InputError(
                        f"Codes run from {min(low)} to {max(high)}; codebook {k} has the entries 0 "
                        f"to {size - 1}."
                    )
        return codes


class BeamQuantizer(Quantizer):
    """A quantizer whose search keeps the ``beam_width`` best hypotheses; 1 is greedy."""

    beam_width: int

    @torch.no_grad()
    def encode(
        self,
        latents: Float[Tensor, "M D"],
        n_codebooks: int | None = None,
        beam_width: int | None = None,
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame by a beam, by default as wide as the constructor said."""
        width = self.beam_width if beam_width is None else beam_width
        check_at_least_one(beam_width=width)
        return self._search(*self.checked_latents(latents, n_codebooks), width)

    @abstractmethod
    def _search(self, x: Float[Tensor, "M D"], n: int, width: int) -> Int[Tensor, "M n"]:
        """Codes of the first n codebooks for checked frames."""


def check_at_least_one(**numbers: int) -> None:
    """Raises ValueError for the first number beneath 1."""
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")


def check_values(x: Float[Tensor, "M D"]) -> None:
    """Raises ValueError for latents that are not finite, or too large to square."""
    # Written so that NaN fails it too.
    if x.numel() and not bool(x.abs().max() <= _LARGEST):
        raise InputError(
            f"The latents have values that are not finite (NaN or infinity) or beyond {_LARGEST:g}."
        )
