"""Constraints on logits for ``transformers.GenerationMixin``: only codes that fit their position.

`CodecLM.generate` needs none of this. But with one stream the backbone is a plain
``LlamaForCausalLM`` over an offset vocabulary, which other software can run too:

    constraint = PatternLogitsProcessor(model.pattern, num_frames=500)
    tokens = model.backbone.generate(
        inputs_embeds=..., logits_processor=LogitsProcessorList([constraint]),
        max_new_tokens=model.pattern.num_steps(500), eos_token_id=-1, ...
    )
    codes, mask = model.pattern.revert(tokens[..., None])
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor

from generative.language_model.patterns import CodePattern
from tokenizer.errors import InputError


class PatternLogitsProcessor(LogitsProcessor):
    """Shuts off all ids that the next slot of a pattern cannot hold.

    Args:
        pattern: One of a single stream: flatten or coarse_first.
        num_frames: Length of the clips; there the stop is the only choice.
        prefix_tokens: Ids ahead of the first slot, e.g. 1 if ``input_ids`` begin with the start;
            0 if the prefix was given as embeddings.
        stop: Whether the stop may come sooner (after one frame at least).

    Raises:
        ValueError: For patterns of several streams, or no frames.
    """

    def __init__(
        self, pattern: CodePattern, num_frames: int, prefix_tokens: int = 0, *, stop: bool = False
    ) -> None:
        if pattern.num_streams != 1:
            raise InputError(
                f"{type(pattern).__name__} predicts {pattern.num_streams} tokens a step, which"
                " transformers' generate cannot: use CodecLM.generate."
            )
        if num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {num_frames}.")
        self.pattern, self.num_frames = pattern, num_frames
        self.prefix_tokens, self.stop = prefix_tokens, stop

    def __call__(
        self, input_ids: Int[Tensor, "B n"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Minus infinity wherever the next token may not be."""
        tokens = input_ids[:, self.prefix_tokens :].cpu()
        allowed = [range(*self.allowed(row)) for row in tokens]
        keep = torch.zeros(scores.shape, dtype=torch.bool)
        for row, ids in zip(keep, allowed, strict=True):
            row[ids.start : ids.stop] = True
        return scores.masked_fill(~keep.to(scores.device), -torch.inf)

    def allowed(self, tokens: Int[Tensor, " n"]) -> tuple[int, int]:
        """First id, and last id + 1, that may follow these tokens of one sequence."""
        vocabulary, step = self.pattern.vocabulary, len(tokens)
        stops = (tokens == vocabulary.stop).nonzero()[:, 0].tolist()
        frames = self.pattern.stop_frame(stops[0]) if stops else self.num_frames
        if frames is None:
            raise InputError(f"The sequence stops at token {stops[0]}, in the middle of a frame.")
        layout = self.pattern.layout(frames)
        if step >= len(layout.codebooks):
            return vocabulary.pad, vocabulary.pad + 1
        codebook, frame = int(layout.codebooks[step, 0]), int(layout.frames[step, 0])
        low, high = vocabulary.ranges[codebook]
        if codebook:
            return low, high
        if frame == frames:
            return vocabulary.stop, vocabulary.stop + 1
        return low, high if self.stop and step else vocabulary.stop
