"""Residual vector quantization: each codebook codes what the ones before it left."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from tokenizer.quantizers.base import LatentSource, Quantizer
from tokenizer.quantizers.kmeans import kmeans, nearest
from tokenizer.quantizers.search import Stage, search
from tokenizer.quantizers.sources import sample_frames
from tokenizer.standardizer import Standardizer

_MEASURE_BATCH = 16_384
# Squares of larger values, summed, overflow float32.
_LARGEST = 1e15


@dataclass(frozen=True)
class FitReport:
    """What `ResidualVectorQuantizer.fit` measured on all latents, with greedy codes.

    Attributes:
        frames: Latent frames seen.
        utilization: Share of each codebook's entries that were used at all.
        perplexity: Two to the entropy (in bits) of each codebook's codes: so many entries, used
            equally often, would carry as much.
        noise_levels: RMS error after the first n codebooks over the latents' RMS deviation from
            their mean.
        distortion_db: The same in dB: ``20 log10(noise_level)``; None for an error of zero.
    """

    frames: int
    utilization: tuple[float, ...]
    perplexity: tuple[float, ...]
    noise_levels: tuple[float, ...]
    distortion_db: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def table(self) -> str:
        """A Markdown table, one row per codebook."""
        lines = [
            f"Measured on {self.frames} latent frames:",
            "",
            "| codebooks | distortion dB | noise level | utilization | perplexity |",
            "|---|---|---|---|---|",
        ]
        columns = (self.distortion_db, self.noise_levels, self.utilization, self.perplexity)
        for n, (db, noise, used, perplexity) in enumerate(zip(*columns, strict=True), 1):
            shown = "-inf" if db is None else f"{db:.2f}"
            lines.append(f"| {n} | {shown} | {noise:.4f} | {used:.1%} | {perplexity:.1f} |")
        return "\n".join(lines)


class ResidualVectorQuantizer(Quantizer):
    """K codebooks, each fitted by k-means to the residual of those before it ("PostRVQ").

    Before each stage's k-means the residual is standardized (see `Standardizer` for the modes); the
    centroids are mapped back, so that all codebooks live in latent space and decoding is a sum of
    rows. In stage k the search measures ``|(residual - centroid) W_k|``: plain distance in the
    modes "none" and "scalar", the decoder's metric in "decoder".

    Greedy codes have the prefix property: the codes of n codebooks are the first n of those of
    more. Codes found by beam search have not (the best n codes need not begin the best n + 1), so
    they are searched for each n anew; decoding the first n of more is valid for both, only not
    quite as good for the beam's. A beam ranks hypotheses by ``|(latents - reconstruction) W_k|`` in
    the metric of the stage it is at, so a beam of one is the greedy search. With metrics that
    change from stage to stage ("channel", "whiten") the last stage's decides.

    The codes of a frame do not depend on the other frames of a call. At frames that are equally
    near to two entries to within float32 rounding, they may depend on the machine.

    Args:
        dim: D.
        num_codebooks: K.
        codebook_size: Entries of each codebook, S.
        standardization: "none", "scalar", "channel" (the paper's), "whiten" or "decoder".
        beam_width: Hypotheses that `encode` keeps, unless told otherwise; 1 is greedy. Time grows
            in proportion.
        max_points: `fit` draws at most so many frames and keeps them in memory. More of them, less
            distortion on other latents.
        iterations: Most k-means iterations per stage.

    Attributes:
        codebooks: Float buffer ``[K, S, D]`` in latent space; may be stored in float16.
        code_counts: int64 buffer ``[K, S]``: how often each code occurred in the latents fitted.

    Raises:
        ValueError: If a number is below 1 or the standardization unknown.
    """

    kind: ClassVar[str] = "rvq"
    codebooks: Tensor
    code_counts: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        standardization: str = "none",
        beam_width: int = 1,
        max_points: int = 200_000,
        iterations: int = 12,
    ) -> None:
        super().__init__()
        for name, value in (
            ("dim", dim),
            ("num_codebooks", num_codebooks),
            ("codebook_size", codebook_size),
            ("beam_width", beam_width),
            ("max_points", max_points),
            ("iterations", iterations),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        self.dim = dim
        self.codebook_size = codebook_size
        self.codebook_sizes = (codebook_size,) * num_codebooks
        self.standardization = standardization
        self.beam_width = beam_width
        self.max_points = max_points
        self.iterations = iterations
        # In mode "decoder" one metric serves all stages.
        distinct = 1 if standardization == "decoder" else num_codebooks
        self.standardizers = nn.ModuleList(
            Standardizer(dim, standardization) for _ in range(distinct)
        )
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))
        self.register_buffer("noise_levels", torch.zeros(num_codebooks))
        self.register_buffer(
            "code_counts", torch.zeros(num_codebooks, codebook_size, dtype=torch.int64)
        )
        self.register_buffer("fitted", torch.tensor(False))

    def to_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "dim": self.dim,
            "num_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "standardization": self.standardization,
            "beam_width": self.beam_width,
            "max_points": self.max_points,
            "iterations": self.iterations,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResidualVectorQuantizer:
        """Builds an unfitted quantizer from what `to_config` returned."""
        try:
            return cls(**config)
        except TypeError as error:
            raise ValueError(f"Not a configuration of the rvq quantizer: {error}.") from None

    @torch.no_grad()
    def fit(
        self,
        latents: LatentSource,
        *,
        generator: torch.Generator,
        metric: Tensor | None = None,
        progress: bool = False,
    ) -> ResidualVectorQuantizer:
        """Fits all stages to a sample of the latents, then measures them on all latents.

        Two passes are made over the source; beside the sample (three copies of it at worst) one
        batch is in memory.

        Args:
            latents: At least one frame, all finite.
            generator: Source of randomness. The same seed gives the same quantizer on one machine.
            metric: G ``[D, D]``, needed for the standardization "decoder", refused for the others.
            progress: Whether to show bars.

        Returns:
            self.

        Raises:
            ValueError: If the latents are empty, of another dimension or not finite, or the metric
                does not fit the mode.
        """
        if latents.dim != self.dim:
            raise ValueError(f"The latents have {latents.dim} dimensions, not {self.dim}.")
        if len(latents) == 0:
            raise ValueError("There are no latents to fit a quantizer to.")
        residual = sample_frames(latents, self.max_points, generator).to(self.codebooks.device)
        _check_values(residual)
        self.fitted.fill_(False)
        # Stages work around the mean, where float32 is finest; the first codebook takes it back.
        mean = residual.mean(0)
        residual -= mean
        for k in tqdm(range(self.num_codebooks), "fit", unit="codebook", disable=not progress):
            standardizer = self._standardizer(k)
            if k == 0 or self.standardization != "decoder":
                standardizer.fit(residual, metric=metric)
            u = standardizer(residual)
            centroids_u = kmeans(
                u, self.codebook_size, generator=generator, iterations=self.iterations
            )
            centroids = standardizer.inverse(centroids_u)
            residual -= centroids.index_select(0, nearest(u, centroids_u))
            self.codebooks[k].copy_(centroids + mean if k == 0 else centroids)
        self._measure(latents, mean, progress)
        self.fitted.fill_(True)
        return self

    @torch.no_grad()
    def encode(
        self,
        latents: Float[Tensor, "M D"],
        n_codebooks: int | None = None,
        beam_width: int | None = None,
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame.

        Args:
            latents: Frames, of any floating-point type; computed in float32.
            n_codebooks: Use the first so many codebooks (default: all).
            beam_width: Hypotheses kept (default: the constructor's); 1 is greedy.

        Returns:
            int64 codes.

        Raises:
            RuntimeError: If the quantizer is not fitted.
            ValueError: If latents are of another dimension, not finite or beyond 1e15, or if a
                number is out of range.
        """
        self._check_fitted()
        n = self.num_codebooks if n_codebooks is None else n_codebooks
        width = self.beam_width if beam_width is None else beam_width
        if not 1 <= n <= self.num_codebooks:
            raise ValueError(f"n_codebooks is {n}; it must be 1 to {self.num_codebooks}.")
        if width < 1:
            raise ValueError(f"beam_width is {width}; it must be at least 1.")
        if latents.ndim != 2 or latents.shape[1] != self.dim or not latents.is_floating_point():
            raise ValueError(
                f"Latents are {latents.dtype} of shape {tuple(latents.shape)}; expected floating "
                f"point of shape [M, {self.dim}]."
            )
        _check_values(latents)
        return self._search(latents.float(), n, width)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, float32, from the codes of the first n codebooks, 1 <= n <= K.

        Raises:
            RuntimeError: If the quantizer is not fitted.
            ValueError: If there are too many codebooks, or a code is out of range.
        """
        self._check_fitted()
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= self.num_codebooks:
            raise ValueError(
                f"Codes have shape {tuple(codes.shape)}; expected [M, n] with n from 1 to "
                f"{self.num_codebooks}."
            )
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"Codes are {codes.dtype}; expected integers.")
        codes = codes.long()
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"Codes run from {int(codes.min())} to {int(codes.max())}; the codebooks have the "
                f"entries 0 to {self.codebook_size - 1}."
            )
        # All codebooks as one table: one fused sum of rows per frame.
        first = torch.arange(codes.shape[1], device=codes.device) * self.codebook_size
        table = self.codebooks[: codes.shape[1]].flatten(0, 1).float()
        return functional.embedding_bag(codes + first, table, mode="sum")

    @property
    def report(self) -> FitReport:
        """What `fit` measured; it is kept in the buffers, so a loaded quantizer has it too.

        Raises:
            RuntimeError: If the quantizer is not fitted.
        """
        self._check_fitted()
        counts = self.code_counts.double()
        share = counts / counts.sum(1, keepdim=True)
        entropy = -torch.special.xlogy(share, share).sum(1)
        noise = self.noise_levels.double().tolist()
        return FitReport(
            frames=int(self.code_counts[0].sum()),
            utilization=tuple((counts > 0).double().mean(1).tolist()),
            perplexity=tuple(entropy.exp().tolist()),
            noise_levels=tuple(noise),
            distortion_db=tuple(20 * math.log10(v) if v > 0 else None for v in noise),
        )

    def _check_fitted(self) -> None:
        if not bool(self.fitted):
            raise RuntimeError(
                "This quantizer is not fitted yet, so it has no codes: run `latok fit`, or call "
                "its .fit() with latents."
            )

    def _standardizer(self, k: int) -> Standardizer:
        standardizer = self.standardizers[min(k, len(self.standardizers) - 1)]
        assert isinstance(standardizer, Standardizer)
        return standardizer

    def _search(self, latents: Tensor, n: int, width: int) -> Tensor:
        # Distances do not change when latents and entries move together; around the mean of the
        # first codebook they are not small differences of large products.
        shift = self.codebooks[0].float().mean(0)
        books = [self.codebooks[k].float() for k in range(n)]
        books[0] = books[0] - shift
        if self.standardization == "decoder":
            # One metric for all stages: everything moves to its space at once.
            common = self._standardizer(0)
            stages = [Stage.build(common.project(book), None) for book in books]
            return search(latents - shift, stages, width, common)
        # One scale for all channels changes no comparison.
        plain = self.standardization in ("none", "scalar")
        stages = [
            Stage.build(book, None if plain else self._standardizer(k))
            for k, book in enumerate(books)
        ]
        return search(latents - shift, stages, width)

    def _measure(self, latents: LatentSource, mean: Tensor, progress: bool) -> None:
        """One pass over all latents: code counts, and the error after each stage."""
        count, size = self.num_codebooks, self.codebook_size
        counts = torch.zeros_like(self.code_counts)
        errors = torch.zeros(count, dtype=torch.float64)
        total = torch.zeros(self.dim, dtype=torch.float64)
        squares = 0.0
        with tqdm(total=len(latents), desc="measure", unit="frame", disable=not progress) as bar:
            for batch in latents.batches(_MEASURE_BATCH):
                x = batch.to(mean.device)
                _check_values(x)
                codes = self._search(x, count, 1)
                residual = x.clone()
                for k in range(count):
                    counts[k] += torch.bincount(codes[:, k], minlength=size)
                    residual -= self.codebooks[k].float().index_select(0, codes[:, k])
                    errors[k] += residual.square().sum(dtype=torch.float64).cpu()
                x = x - mean
                total += x.sum(0, dtype=torch.float64).cpu()
                squares += float(x.square().sum(dtype=torch.float64))
                bar.update(len(x))
        frames = len(latents)
        variance = squares / frames - float((total / frames).square().sum())
        # Latents that are all alike, to within rounding, have no deviation to compare errors with.
        rounding = self.dim * float(mean.abs().max() * torch.finfo(torch.float32).eps) ** 2
        varied = variance > rounding
        noise = (errors / frames / variance).sqrt() if varied else torch.zeros_like(errors)
        self.code_counts.copy_(counts)
        self.noise_levels.copy_(noise)


def _check_values(x: Tensor) -> None:
    # Written so that NaN fails it too.
    if x.numel() and not bool(x.abs().max() <= _LARGEST):
        raise ValueError(
            f"The latents have values that are not finite (NaN or infinity) or beyond {_LARGEST:g}."
        )
