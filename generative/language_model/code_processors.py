"""Logits processors that make `transformers`' ``generate`` draw codes of the flatten pattern.

In such a sequence the codes follow ``start`` one by one, the codebooks of a frame in order. The end
of audio is possible where a frame is complete, but not before the first one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor

from generative.language_model.patterns import make_pattern
from generative.language_model.sampling import Draw
from generative.protocol import CodeSampling
from tokenizer.errors import InputError


class CodeRanges(LogitsProcessor):
    """Leaves the scores of the codes that can come next; the library's warpers draw from them.

    Args:
        codebook_sizes: Entries of the codebooks; they determine the ids (`CodeVocabulary`).
        stop: Whether the end of audio is possible.
    """

    def __init__(self, codebook_sizes: Sequence[int], *, stop: bool = True) -> None:
        self.pattern, self.stop = make_pattern("flatten", codebook_sizes), stop
        self.vocabulary = self.pattern.vocabulary

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Int[Tensor, "B S"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """The scores, minus infinity for ids that cannot come next."""
        slots = self._slots(input_ids)
        ranges = torch.tensor(self.vocabulary.ranges, device=scores.device)
        low, high = ranges[slots % len(ranges)].T
        ids = torch.arange(scores.shape[1], device=scores.device)
        outside = (ids < low[:, None]) | (ids >= high[:, None])
        may_stop = (slots > 0) & self.stop
        outside |= (ids == self.vocabulary.stop) & ~may_stop[:, None]
        return scores.masked_fill(outside, -torch.inf)

    def _slots(self, input_ids: Tensor) -> Int[Tensor, " B"]:
        """How many codes each sequence has."""
        starts = input_ids == self.vocabulary.start
        if not bool(starts.any(1).all()):
            raise InputError(f"A sequence has no start: codes follow id {self.vocabulary.start}.")
        return input_ids.shape[1] - 1 - starts.int().argmax(1)


class CodeDraws(CodeRanges):
    """Leaves the score of one id: the one that `CodecLM.sample` draws from an equal generator.

    ``generate`` then takes it, with ``do_sample=False``.

    Args:
        codebook_sizes: Entries of the codebooks.
        num_frames: Frames of each clip, a prompt included.
        batch_size: Number of clips.
        generator: On the CPU.
        sampling: Temperature, top-k, top-p and stop.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        num_frames: int,
        batch_size: int,
        generator: torch.Generator,
        sampling: CodeSampling | None = None,
    ) -> None:
        sampling = sampling or CodeSampling()
        super().__init__(codebook_sizes, stop=sampling.stop)
        steps = len(self.pattern.layout(num_frames).frames)
        self.uniform = torch.rand(steps, batch_size, 1, generator=generator)
        self.sampling = sampling

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Int[Tensor, "B S"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """The scores, minus infinity but for one id a row."""
        slots = self._slots(input_ids)
        if len(slots) != self.uniform.shape[1] or int(slots.max()) >= len(self.uniform):
            raise InputError(
                f"{len(slots)} sequences of up to {int(slots.max())} codes: the draws are of"
                f" {self.uniform.shape[1]} of at most {len(self.uniform) - 1}."
            )
        rows = torch.arange(len(slots), device=slots.device)
        uniform = self.uniform.to(scores.device)[slots, rows]
        draw = Draw(self.pattern, self.sampling, scores.device)
        codebooks = (slots % self.pattern.num_codebooks)[:, None]
        drawn = draw(scores, codebooks, uniform, (slots > 0) & self.stop)
        kept = torch.full_like(scores, -torch.inf)
        return kept.scatter(1, drawn, scores.gather(1, drawn))
