"""Sampling of codes from a language model: windows, steps and draws.

This loop stands beside ``transformers.GenerationMixin``, which cannot draw several tokens a step,
generate clips in windows, or draw from one generator on the CPU. The logits warpers are the
library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from generative.language_model.patterns import CodePattern
from generative.protocol import CodeSampling, check_prompt_length
from tokenizer.errors import InputError

# Takes the tokens [B, n, W] of all steps so far. Returns what takes the tokens [B, w] of the next
# step that are there, w being where one of `CodePattern.draws` begins, and returns logits [B, V].
StepLogits = Callable[[Tensor], Callable[[Tensor], Tensor]]


def generate_codes(
    model: Any,
    conditions: Mapping[str, Any],
    num_frames: int | Sequence[int],
    generator: torch.Generator,
    sampling: CodeSampling,
    guidance_scale: float,
    prompts: Sequence[Tensor | None],
) -> list[Tensor]:
    """See `generative.CodecLM.sample`."""
    count, num_codebooks = len(conditions["label"]), model.pattern.num_codebooks
    lengths = [num_frames] * count if isinstance(num_frames, int) else list(num_frames)
    all_prompts = list(prompts) or [None] * count
    if len(lengths) != count or len(all_prompts) != count:
        raise InputError(
            f"{len(lengths)} lengths and {len(all_prompts)} prompts for {count} conditions."
        )
    empty = torch.zeros(0, num_codebooks, dtype=torch.int64)
    codes = [empty if prompt is None else prompt.cpu().long() for prompt in all_prompts]
    for prompt, length in zip(codes, lengths, strict=True):
        if prompt.ndim != 2 or prompt.shape[1] != num_codebooks:
            raise InputError(
                f"A prompt has shape {list(prompt.shape)}; expected [T, {num_codebooks}]."
            )
        check_prompt_length(len(prompt), length)
    captions = list(conditions.get("caption") or [None] * count)
    context = model.context_frames
    unfinished = list(range(count))
    while unfinished:
        starts = [_window_start(len(codes[i]), lengths[i], context) for i in unfinished]
        ends = [
            lengths[i] if context is None else min(lengths[i], start + context)
            for i, start in zip(unfinished, starts, strict=True)
        ]
        window = _Window(
            model,
            [codes[i][start:] for i, start in zip(unfinished, starts, strict=True)],
            [end - start for end, start in zip(ends, starts, strict=True)],
            stop=sampling.stop,
        )
        part = {
            "label": conditions["label"][unfinished],
            "caption": [captions[i] for i in unfinished],
        }
        pieces = window.run(part, generator, sampling, guidance_scale)
        for i, start, end, piece in zip(unfinished, starts, ends, pieces, strict=True):
            codes[i] = torch.cat([codes[i][:start], piece])
            if len(codes[i]) < end:
                lengths[i] = len(codes[i])
        unfinished = [i for i in unfinished if len(codes[i]) < lengths[i]]
    return codes


def _window_start(frames_so_far: int, length: int, context: int | None) -> int:
    """The first frame of the next window, which overlaps what is there by half a window."""
    if context is None or length <= context:
        return 0
    return max(0, frames_so_far - context // 2)


class _Window:
    """Sequences of ``lengths`` frames that are generated side by side, each after its prompt.

    With ``stop`` the model may end a sequence before its length.
    """

    def __init__(
        self, model: Any, prompts: list[Tensor], lengths: list[int], *, stop: bool
    ) -> None:
        self.model, self.pattern, self.device = model, model.pattern, model.device
        self.prompts, self.lengths, self.stop = prompts, lengths, stop
        shape = self.pattern.layouts(lengths).frames.shape
        self.tokens = torch.full(shape, self.pattern.vocabulary.pad, device=self.device)
        self.codebooks = torch.full(shape, -1, device=self.device)
        # Slots that the model fills; all others are known before sampling begins.
        self.free = torch.zeros(shape, dtype=torch.bool)
        for item in range(len(lengths)):
            self._fill(item, first_step=0)

    def _fill(self, item: int, first_step: int) -> None:
        """Writes the known tokens of a sequence from a step on: its prompt, its stop, padding."""
        length, prompt = self.lengths[item], self.prompts[item]
        layout, vocabulary = self.pattern.layout(length), self.pattern.vocabulary
        frames, codebooks = layout.frames, layout.codebooks
        table = torch.full((length + 1, self.pattern.num_codebooks), vocabulary.pad)
        table[: len(prompt)] = prompt + torch.tensor(vocabulary.offsets)
        table[length, 0] = vocabulary.stop
        used = codebooks >= 0
        tokens = table[frames, codebooks].where(used, vocabulary.pad)
        free = used & (frames >= len(prompt)) & (frames < length)
        steps = slice(first_step, len(frames))
        self.tokens[item, first_step:] = vocabulary.pad
        self.tokens[item, steps] = tokens[first_step:].to(self.device)
        self.codebooks[item, first_step:] = -1
        self.codebooks[item, steps] = codebooks[first_step:].to(self.device)
        self.free[item, first_step:] = False
        self.free[item, steps] = free[first_step:]

    @torch.no_grad()
    def run(
        self,
        conditions: Mapping[str, Any],
        generator: torch.Generator,
        sampling: CodeSampling,
        guidance_scale: float,
    ) -> list[Tensor]:
        """Codes of each sequence, its prompt included."""
        batch, num_steps, streams = self.tokens.shape
        next_logits = self.model.step_logits(
            conditions, num_steps, guidance_scale=guidance_scale, use_cache=sampling.use_cache
        )
        draw = Draw(self.pattern, sampling, self.device)
        uniform = torch.rand(num_steps, batch, streams, generator=generator).to(self.device)
        # On the device once: a copy in each step would wait for all steps before.
        free_slots, is_free = self.free.to(self.device), self.free.numpy()
        for step in range(num_steps):
            if not is_free[:, step].any():
                continue
            slot_logits = next_logits(self.tokens[:, :step])
            for streams in self.pattern.draws:
                if not is_free[:, step, streams].any():
                    continue
                tokens = self.tokens[:, step, streams]
                logits = slot_logits(self.tokens[:, step, : streams.start])
                # A stop as the first code would make an empty clip.
                may_stop = self.stop and (step > 0 or streams.start > 0)
                drawn = draw(
                    logits,
                    self.codebooks[:, step, streams],
                    uniform[step][:, streams],
                    torch.full((batch,), may_stop, device=self.device),
                )
                free = free_slots[:, step, streams]
                self.tokens[:, step, streams] = torch.where(free, drawn, tokens)
                if self.stop and self._shorten(step, streams):
                    free_slots = self.free.to(self.device)
        codes, mask = self.pattern.revert(self.tokens.cpu())
        return [item[present] for item, present in zip(codes, mask, strict=True)]

    def _shorten(self, step: int, streams: slice) -> bool:
        """Sets the length of the sequences that drew their stop in these streams of a step.

        Returns whether any did.
        """
        stopped = (self.tokens[:, step, streams] == self.pattern.vocabulary.stop).cpu()
        places = (stopped & self.free[:, step, streams]).nonzero().tolist()
        for item, stream in places:
            frames = self.pattern.stop_frame(step, streams.start + stream)
            assert frames is not None
            self.lengths[item] = frames
            # Other streams may have drawn, or would draw, codes of a frame that the clip has not.
            unused = self.pattern.layout(frames).codebooks[step] < 0
            self.tokens[item, step, unused.to(self.device)] = self.pattern.vocabulary.pad
            self.free[item, step, unused] = False
            self._fill(item, step + 1)
        return bool(places)


class Draw:
    """Draws the tokens of a step, each from the range of ids that its slot may hold."""

    def __init__(self, pattern: CodePattern, sampling: CodeSampling, device: torch.device) -> None:
        ranges = torch.tensor(pattern.vocabulary.ranges, device=device)
        self.low, self.count = ranges[:, 0], ranges[:, 1] - ranges[:, 0]
        self.stop = pattern.vocabulary.stop
        self.choices = torch.arange(int(self.count.max()), device=device)
        self.greedy = sampling.temperature == 0
        self.warpers = LogitsProcessorList()
        if not self.greedy and sampling.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k is not None:
            self.warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None and sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(
        self,
        logits: Float[Tensor, "B V"],
        codebooks: Int[Tensor, "B W"],
        uniform: Float[Tensor, "B W"],
        may_stop: Bool[Tensor, " B"],
    ) -> Int[Tensor, "B W"]:
        """The ids drawn for the slots of a step; arbitrary for slots without a codebook.

        ``uniform`` are random numbers in [0, 1).
        """
        low, count = self.low[codebooks], self.count[codebooks]
        ids = low[..., None] + self.choices
        outside = self.choices >= count[..., None]
        outside = outside | ((ids == self.stop) & ~may_stop[:, None, None])
        scores = logits.gather(1, ids.flatten(1).clamp(max=logits.shape[1] - 1))
        scores = scores.view(ids.shape).masked_fill(outside, -torch.inf)
        if self.greedy:
            return low + scores.argmax(-1)
        flat: Any = scores.flatten(0, 1)
        # These warpers ignore their first argument, the ids so far.
        flat = self.warpers(codebooks.flatten()[:, None], flat)  # pyright: ignore
        cumulative = flat.softmax(-1).cumsum(-1)
        total = cumulative[:, -1:]
        # Rounding must not give the total itself: behind it there is no choice.
        target = torch.minimum(
            uniform.flatten()[:, None] * total, total.nextafter(torch.zeros_like(total))
        )
        return low + torch.searchsorted(cumulative, target, right=True).view_as(low)
