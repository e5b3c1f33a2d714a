"""A residual quantizer whose codebooks depend on what has been decoded so far.

Written after the published method: Huijben, Douze, Muckley, van Sloun, Verbeek: Residual
Quantization with Implicit Neural Codebooks (2024); Vallaeys, Muckley, Verbeek, Douze: QINCo2
(2025), from which candidate pre-selection and beam search are taken. QINCODEC applies it to audio.

Shape suffixes: R rows of a block, H hypotheses of a row, A candidates of a hypothesis.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.quantizers.base import BeamQuantizer, FitContext, LatentSource, check_at_least_one
from tokenizer.quantizers.blocks import in_blocks
from tokenizer.quantizers.kmeans import block_rows, largest_in_rows
from tokenizer.quantizers.neural_training import NETWORK, Plan, Stage, network, train

_DECODED_ROWS = 256
# Candidates whose entries are computed at once.
_CANDIDATES = 4096


class ImplicitNeuralQuantizer(BeamQuantizer):
    """K codebooks in sequence; a small network adapts each to the estimate so far.

    The entry that codebook k adds to the estimate e is ``c + f_k(c, e)`` for a learned vector c and
    a network f_k (see `network`). To search all S entries would mean to run the network S times, so
    the ``candidates`` nearest by a cheap rule are computed and the best of them taken. The rule:
    ``keys[c] + e offsets`` is about what the entry would be.

    Gradient descent starts from a refined `ResidualVectorQuantizer`, with networks that add
    nothing, on the latents' deviation from their mean over their overall deviation.

    Args:
        dim, num_codebooks, codebook_size: See `Quantizer`.
        hidden: Width of the networks.
        depth: Residual blocks of each network.
        candidates: Entries computed for each hypothesis.
        beam_width: Hypotheses that `encode` keeps; 1 is greedy.
        steps: Of training.
        batch_size: Frames per step.
        learning_rate: Peak of the schedule: a short warm-up, then a cosine to a hundredth.
        max_points: `fit` draws at most so many frames and keeps them in memory. Ten times as many
            as serve plain residual quantization pay.

    Attributes:
        mean: Buffer ``[D]``.
        scale: Buffer ``[]``, the latents' root mean square deviation.
        codebooks: Buffer ``[K, S, D]``.
        keys: Buffer ``[K, S, D]``.
        offsets: Buffer ``[K, D, D]``.
        entry_in: Buffer ``[K, D, hidden]``, and so on: see `NETWORK`.

    Raises:
        ValueError: If a number is below 1, or the learning rate not positive.
    """

    kind: ClassVar[str] = "qinco"
    mean: Tensor
    scale: Tensor
    codebooks: Tensor
    keys: Tensor
    offsets: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        hidden: int = 128,
        depth: int = 1,
        candidates: int = 16,
        beam_width: int = 1,
        steps: int = 10_000,
        batch_size: int = 1_024,
        learning_rate: float = 2e-3,
        max_points: int = 500_000,
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks)
        check_at_least_one(
            hidden=hidden,
            depth=depth,
            candidates=candidates,
            beam_width=beam_width,
            steps=steps,
            batch_size=batch_size,
            max_points=max_points,
        )
        if not learning_rate > 0:
            raise InputError(f"learning_rate is {learning_rate}; it must be positive.")
        self.codebook_size = codebook_size
        self.hidden = hidden
        self.depth = depth
        self.candidates = candidates
        self.beam_width = beam_width
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.max_points = max_points
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        sizes = {"D": dim, "S": codebook_size, "H": hidden, "L": depth}
        for name, axes in NETWORK.items():
            shape = [sizes[axis] for axis in axes]
            self.register_buffer(name, torch.zeros(num_codebooks, *shape))

    def fit_with(self, latents: LatentSource, context: FitContext) -> ImplicitNeuralQuantizer:
        """Fits with a checkpoint to resume from."""
        return self.fit(
            latents,
            generator=context.generator,
            progress=context.progress,
            checkpoint=context.checkpoint,
        )

    @torch.no_grad()
    def fit(
        self,
        latents: LatentSource,
        *,
        generator: torch.Generator,
        progress: bool = False,
        checkpoint: Path | None = None,
    ) -> ImplicitNeuralQuantizer:
        """Trains on a sample of the latents.

        Training writes its state to ``checkpoint``, a ``.safetensors`` file, every minute. Started
        again with the same latents and options, it resumes to the same result as without a stop;
        others raise ValueError.
        """
        frames = self.training_sample(latents, self.max_points, generator)
        mean = frames.mean(0)
        frames -= mean
        scale = frames.square().mean(dtype=torch.float64).sqrt().float()
        scale = torch.where(scale > 0, scale, 1)
        options = {field.name: getattr(self, field.name) for field in fields(Plan)}
        options["candidates"] = min(self.candidates, self.codebook_size)
        plan = Plan(**options)
        learned = train(frames / scale, plan, generator, checkpoint, progress=progress)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        for name, value in learned.items():
            getattr(self, name).copy_(value)
        return self.measure(latents, progress=progress)

    def _search(self, x: Float[Tensor, "M D"], n: int, width: int) -> Int[Tensor, "M n"]:
        mean, scale = self.mean.float(), self.scale.float()
        candidates = min(self.candidates, self.codebook_size)
        stages = [Stage(self._weights(k)) for k in range(n)]
        # A power of two, so that blocks of one call begin where those of another do.
        rows = max(1, _CANDIDATES // (width * candidates))
        rows = min(block_rows(self.codebook_size), 1 << (rows.bit_length() - 1))
        return in_blocks(
            lambda block: _search((block - mean) / scale, stages, width, candidates), x, rows
        )

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents: each codebook's entry in turn, adapted to the estimate before it."""
        codes = self.checked_codes(codes)
        weights = [self._weights(k) for k in range(codes.shape[1])]
        mean, scale = self.mean.float(), self.scale.float()

        def decode(block: Tensor) -> Tensor:
            estimate = mean.new_zeros(len(block), self.dim)
            for w, code in zip(weights, block.T, strict=True):
                entry = w["codebooks"].index_select(0, code)
                estimate = estimate + network(w, entry, estimate)
            return estimate * scale + mean

        return in_blocks(decode, codes, _DECODED_ROWS)

    def _weights(self, k: int) -> dict[str, Tensor]:
        return {name: getattr(self, name)[k].float() for name in NETWORK}


def _search(x: Tensor, stages: list[Stage], width: int, candidates: int) -> Tensor:
    """Codes ``[R, n]`` of the best hypothesis after the last stage."""
    rows, dim = x.shape
    estimate_RHD = x.new_zeros(rows, 1, dim)
    codes_RHn = torch.zeros(rows, 1, 0, dtype=torch.int64, device=x.device)
    for stage in stages:
        hypotheses = estimate_RHD.shape[1]
        residual, estimate = (x[:, None] - estimate_RHD).flatten(0, 1), estimate_RHD.flatten(0, 1)
        entry = stage.candidates(residual, estimate, candidates)
        entry_RHA = entry.view(rows, hypotheses, candidates)
        added_RHAD = stage.try_entries(entry, estimate).view(*entry_RHA.shape, dim)
        tried = (estimate_RHD[:, :, None] + added_RHAD).flatten(1, 2)
        score = -(x[:, None] - tried).square().sum(-1)
        num_kept = min(width, hypotheses * candidates)
        best = largest_in_rows(score, num_kept)
        estimate_RHD = tried.gather(1, best[..., None].expand(-1, -1, dim))
        parent = (best // candidates)[..., None]
        history = codes_RHn.gather(1, parent.expand(-1, -1, codes_RHn.shape[2]))
        chosen = entry_RHA.flatten(1).gather(1, best)[..., None]
        codes_RHn = torch.cat([history, chosen], 2)
    return codes_RHn[:, 0]
