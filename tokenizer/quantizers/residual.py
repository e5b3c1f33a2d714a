"""Residual vector quantization: each codebook codes what the ones before it left."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm, trange

from tokenizer.errors import InputError
from tokenizer.quantizers.base import (
    BeamQuantizer,
    FitContext,
    LatentSource,
    check_at_least_one,
    check_values,
)
from tokenizer.quantizers.kmeans import kmeans, nearest, sum_over
from tokenizer.quantizers.measure import relative_errors
from tokenizer.quantizers.refine import refine
from tokenizer.quantizers.search import Stage, build_stages, search, search_each
from tokenizer.quantizers.standardizer import Standardizer

_MEASURE_BATCH = 16_384


class ResidualVectorQuantizer(BeamQuantizer):
    """K codebooks, each fitted by k-means to the residual of those before it ("PostRVQ").

    Before each stage's k-means the residual is standardized (see `Standardizer` for the modes); the
    centroids are mapped back, so that all codebooks live in latent space and decoding is a sum of
    rows. In stage k the search measures ``|(residual - centroid) W_k|``: plain distance in the
    modes "none" and "scalar", the decoder's metric in "decoder".

    Greedy codes have the prefix property: the codes of n codebooks are the first n of those of
    more. Codes found by beam search have not, so they are searched for each n anew; decoding the
    first n of more is valid, only not quite as good. A beam ranks hypotheses by
    ``|(latents - reconstruction) W_k|`` in the metric of the stage it is at; with metrics that
    change from stage to stage ("channel", "whiten") the last stage's decides.

    Args:
        dim, num_codebooks, codebook_size, max_points, iterations: See `Quantizer`.
        standardization: "none", "scalar", "channel" (the paper's), "whiten" or "decoder".
        beam_width: Hypotheses that `encode` keeps, unless told otherwise; 1 is greedy. Time grows
            in proportion.
        refinements: After k-means, so many times all codebooks are fitted anew together, given the
            codes (see `refine`), and the codes searched for again. Only for standardizations with
            one metric for all stages.

    Attributes:
        codebooks: Float buffer ``[K, S, D]`` in latent space; may be stored in float16.

    Raises:
        ValueError: If a number is too small, the standardization unknown, or refinements are asked
            for where they cannot be.
    """

    kind: ClassVar[str] = "rvq"
    codebooks: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        standardization: str = "none",
        beam_width: int = 1,
        max_points: int = 200_000,
        iterations: int = 12,
        refinements: int = 0,
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks)
        check_at_least_one(beam_width=beam_width, max_points=max_points, iterations=iterations)
        self.codebook_size = codebook_size
        self.standardization = standardization
        self.beam_width = beam_width
        self.max_points = max_points
        if refinements < 0:
            raise InputError(f"refinements is {refinements}; it must not be negative.")
        if refinements and standardization in ("channel", "whiten"):
            raise InputError(
                f"With standardization {standardization!r} every codebook has a metric of its own; "
                "refinements fit all codebooks together, and need 'none', 'scalar' or 'decoder'."
            )
        self.iterations = iterations
        self.refinements = refinements
        # In mode "decoder" one metric serves all stages.
        distinct = 1 if standardization == "decoder" else num_codebooks
        self.standardizers = nn.ModuleList(
            Standardizer(dim, standardization) for _ in range(distinct)
        )
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))

    def fit_with(self, latents: LatentSource, context: FitContext) -> ResidualVectorQuantizer:
        """Fits with the decoder's sensitivity as the metric where the standardization needs it."""
        metric = context.sensitivity() if self.standardization == "decoder" else None
        return self.fit(
            latents, generator=context.generator, metric=metric, progress=context.progress
        )

    @torch.no_grad()
    def fit(
        self,
        latents: LatentSource,
        *,
        generator: torch.Generator,
        metric: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        progress: bool = False,
    ) -> ResidualVectorQuantizer:
        """Fits all stages to a sample of the latents, then measures them on all latents.

        Two passes are made over the source, or one where the sample is all of it; beside the sample
        (three copies of it at worst) one batch is in memory. The same seed gives the same quantizer
        on one machine.

        Args:
            latents: At least one frame, all finite.
            generator: Source of randomness.
            metric: G ``[D, D]``, needed for the standardization "decoder", refused for the others.
            group: Processes that fit one quantizer together, each with latents of its own and
                ``max_points`` of them; what they count and sum is summed over all. They need
                generators of one seed, and the standardization "none".
            progress: Whether to show bars.

        Raises:
            ValueError: If the latents are empty, of another dimension or not finite, or the metric
                or a group does not fit the mode.
        """
        if group is not None and (self.standardization != "none" or self.refinements):
            raise InputError(
                "Several processes fit with standardization 'none' and without refinements only."
            )
        drawing = generator
        if group is not None:  # Processes draw different frames, and then the same centroids.
            drawing = torch.Generator().manual_seed(dist.get_rank(group))
        residual = self.training_sample(latents, self.max_points, drawing)
        # Stages work around the mean, where float32 is finest; the first codebook takes it back.
        total = residual.sum(0, dtype=torch.float64)
        moments = sum_over(torch.cat([total, total.new_tensor([len(residual)])]), group)
        mean = (moments[:-1] / moments[-1]).float()
        residual -= mean
        energy = residual.square().sum(dtype=torch.float64)
        size = self.codebook_size
        codes_by_stage: list[Tensor] = []
        errors: list[Tensor] = []
        for k in tqdm(range(self.num_codebooks), "fit", unit="codebook", disable=not progress):
            standardizer = self._standardizer(k)
            if k == 0 or self.standardization != "decoder":
                standardizer.fit(residual, metric=metric)
            u = standardizer(residual)
            centroids_u = kmeans(
                u, size, generator=generator, iterations=self.iterations, group=group
            )
            centroids = standardizer.inverse(centroids_u)
            codes = nearest(u, centroids_u)
            residual -= centroids.index_select(0, codes)
            self.codebooks[k].copy_(centroids + mean if k == 0 else centroids)
            codes_by_stage.append(codes)
            errors.append(residual.square().sum(dtype=torch.float64).cpu())
        if self.refinements:
            self._refine(residual, torch.stack(codes_by_stage, 1), mean, progress)
        if self.refinements or group is not None or len(residual) < len(latents):
            self._measure(latents, mean, group, progress)
        else:
            # Of all latents these are the codes already.
            counts = [torch.bincount(codes, minlength=size) for codes in codes_by_stage]
            variance = float(energy) / len(residual)
            self._keep(torch.stack(counts), torch.stack(errors) / len(residual), variance, mean)
        self.fitted.fill_(True)
        return self

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, as a sum of entries; see `Quantizer.decode`."""
        codes = self.checked_codes(codes)
        # All codebooks as one table: one fused sum of rows per frame.
        first = torch.arange(codes.shape[1], device=codes.device) * self.codebook_size
        table = self.codebooks[: codes.shape[1]].flatten(0, 1).float()
        return functional.embedding_bag(codes + first, table, mode="sum")

    @torch.no_grad()
    def decode_each(
        self, codes: Int[Tensor, "M n"], counts: Int[np.ndarray, " M"]
    ) -> Float[Tensor, "M D"]:
        """See `Quantizer.decode_each`; all frames are decoded together."""
        codes = self.checked_codes(codes)
        books = torch.arange(codes.shape[1], device=codes.device)
        table = self.codebooks[: codes.shape[1]].flatten(0, 1).float()
        used = (books < torch.from_numpy(counts).to(codes.device)[:, None]).to(table.dtype)
        places = codes + books * self.codebook_size
        return functional.embedding_bag(places, table, mode="sum", per_sample_weights=used)

    def _refine(self, residual: Tensor, codes: Tensor, mean: Tensor, progress: bool) -> None:
        """Fits all codebooks together, given what they left of the latents minus their mean."""
        for book, code in zip(self.codebooks, codes.T, strict=True):
            residual += book.index_select(0, code)
        centred = residual.sub_(mean)
        books = self.codebooks.clone()
        books[0] -= mean
        for i in trange(self.refinements, desc="refine", unit="round", disable=not progress):
            if i > 0:
                codes = self._search(centred + mean, self.num_codebooks, 1)
            books = refine(centred, codes, books)
            self.codebooks.copy_(books)
            self.codebooks[0] += mean

    def _standardizer(self, k: int) -> Standardizer:
        standardizer = self.standardizers[min(k, len(self.standardizers) - 1)]
        assert isinstance(standardizer, Standardizer)
        return standardizer

    def search_space(self, n: int) -> tuple[Tensor, Standardizer | None, list[Stage]]:
        """What `search` needs of n codebooks: a shift of latents, a map to a space, the stages."""
        # Distances do not change when latents and entries move together; around the mean of the
        # first codebook they are not small differences of large products.
        shift = self.codebooks[0].float().mean(0)
        books = [self.codebooks[k].float() for k in range(n)]
        books[0] = books[0] - shift
        if self.standardization == "decoder":
            # One metric for all stages: everything moves to its space at once.
            common = self._standardizer(0)
            books = [common.project(book) for book in books]
            return shift, common, build_stages(books, [None] * n)
        # One scale for all channels changes no comparison.
        plain = self.standardization in ("none", "scalar")
        standardizers = [None if plain else self._standardizer(k) for k in range(n)]
        return shift, None, build_stages(books, standardizers)

    def _search(self, x: Float[Tensor, "M D"], n: int, width: int) -> Int[Tensor, "M n"]:
        shift, common, stages = self.search_space(n)
        return search(x - shift, stages, width, common)

    @torch.no_grad()
    def encode_each(
        self, latents: Float[Tensor, "M D"], counts: Int[np.ndarray, " M"]
    ) -> Int[Tensor, "M n"]:
        """See `Quantizer.encode_each`; all frames are searched together."""
        x, n = self.checked_latents(latents, int(counts.max()))
        shift, common, stages = self.search_space(n)
        return search_each(x - shift, counts, stages, self.beam_width, common)

    def _measure(
        self, latents: LatentSource, mean: Tensor, group: dist.ProcessGroup | None, progress: bool
    ) -> None:
        """One pass over all latents: code counts, and the error after each stage."""
        count, size = self.num_codebooks, self.codebook_size
        counts = torch.zeros_like(self.code_counts)
        errors = torch.zeros(count, dtype=torch.float64)
        total = torch.zeros(self.dim, dtype=torch.float64)
        squares = 0.0
        with tqdm(total=len(latents), desc="measure", unit="frame", disable=not progress) as bar:
            for batch in latents.batches(_MEASURE_BATCH):
                x = batch.to(mean.device)
                check_values(x)
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
        counts = sum_over(counts, group)
        sums = torch.cat([errors, total, errors.new_tensor([squares, len(latents)])])
        sums = sum_over(sums.to(mean.device), group).cpu()
        errors, total = sums[:count], sums[count:-2]
        squares, frames = sums[-2:].tolist()
        variance = squares / frames - float((total / frames).square().sum())
        self._keep(counts, errors / frames, variance, mean)

    def _keep(self, counts: Tensor, errors: Tensor, variance: float, mean: Tensor) -> None:
        """What was measured: counts of codes, mean squared errors of stages, the variance."""
        self.code_counts.copy_(counts)
        self.noise_levels.copy_(relative_errors(errors, variance, mean))
