"""How a `CodecLM` generates: windows, steps, draws.

A loop of our own instead of ``transformers.GenerationMixin``: several tokens per step, guidance in
one batch, prompts of different lengths side by side, and all randomness from one generator on the
CPU. The warpers of logits are the library's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from generative.language_model.llama_steps import LlamaSteps
from generative.language_model.patterns import CodePattern
from generative.protocol import CodeSampling
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from generative.language_model.codec_lm import CodecLM

Codes = Int[Tensor, "T K"]


def generate_codes(
    model: CodecLM,
    conditions: Mapping[str, Any],
    num_frames: int | Sequence[int],
    generator: torch.Generator,
    *,
    sampling: CodeSampling,
    guidance_scale: float | int,
    prompts: Sequence[Tensor | None],
) -> list[Tensor]:
    """See `CodecLM.generate`."""
    count = len(conditions["label"])
    lengths = [num_frames] * count if isinstance(num_frames, int) else list(num_frames)
    given = list(prompts) or [None] * count
    if len(lengths) != count or len(given) != count:
        raise InputError(f"{len(lengths)} lengths and {len(given)} prompts for {count} conditions.")
    nothing = torch.zeros(0, model.num_codebooks, dtype=torch.int64)
    codes = [nothing if prompt is None else prompt.cpu().long() for prompt in given]
    for prompt, length in zip(codes, lengths, strict=True):
        if prompt.ndim != 2 or prompt.shape[1] != model.num_codebooks:
            raise InputError(
                f"A prompt has shape {list(prompt.shape)}; expected [T, {model.num_codebooks}]."
            )
        if len(prompt) >= length:
            raise InputError(
                f"A prompt has {len(prompt)} frames, the whole clip {length}: nothing is left to"
                " generate."
            )
    captions = list(conditions.get("caption") or [None] * count)
    context = model.config.context_frames
    unfinished = list(range(count))
    while unfinished:
        starts = [_window_start(len(codes[i]), lengths[i], context) for i in unfinished]
        ends = [
            lengths[i] if context is None else min(lengths[i], start + context)
            for i, start in zip(unfinished, starts, strict=True)
        ]
        part = {
            "label": conditions["label"][unfinished],
            "caption": [captions[i] for i in unfinished],
        }
        window = _Window(
            model,
            [codes[i][start:] for i, start in zip(unfinished, starts, strict=True)],
            [end - start for end, start in zip(ends, starts, strict=True)],
            stop=sampling.stop,
        )
        found = window.run(part, generator, sampling, float(guidance_scale))
        for i, start, end, piece in zip(unfinished, starts, ends, found, strict=True):
            codes[i] = torch.cat([codes[i][:start], piece])
            if len(codes[i]) < end:
                lengths[i] = len(codes[i])
        unfinished = [i for i in unfinished if len(codes[i]) < lengths[i]]
    return codes


def _window_start(known: int, length: int, context: int | None) -> int:
    """The first frame that the model sees when it goes on after the known ones."""
    if context is None or length <= context:
        return 0
    return max(0, known - context // 2)


class _Window:
    """Sequences that are generated side by side, from their first step to their last.

    Args:
        model: Predicts.
        prompts: Codes that each sequence begins with.
        lengths: Frames of each sequence.
        stop: Whether the model may end it sooner.
    """

    def __init__(
        self, model: CodecLM, prompts: list[Tensor], lengths: list[int], *, stop: bool
    ) -> None:
        self.model, self.pattern, self.stop = model, model.pattern, stop
        self.prompts, self.lengths = prompts, lengths
        self.device = model.device
        layouts = self.pattern.layouts(lengths)
        shape = layouts.frames.shape
        self.tokens = torch.full(shape, self.pattern.vocabulary.pad, device=self.device)
        self.codebooks = torch.full(shape, -1, device=self.device)
        self.free = torch.zeros(shape, dtype=torch.bool)
        for item in range(len(lengths)):
            self._plan(item, 0)

    def _plan(self, item: int, first: int) -> None:
        """Fills in what is known of a sequence, from a step on: its prompt, its stop, its end."""
        length, prompt = self.lengths[item], self.prompts[item]
        layout, vocabulary = self.pattern.layout(length), self.pattern.vocabulary
        frames, codebooks = layout.frames, layout.codebooks
        table = torch.full((length + 1, self.pattern.num_codebooks), vocabulary.pad)
        table[: len(prompt)] = prompt + torch.tensor(vocabulary.offsets)
        table[length, 0] = vocabulary.stop
        steps = slice(first, len(frames))
        there = codebooks >= 0
        known = table[frames, codebooks].where(there, vocabulary.pad)
        self.tokens[item, first:] = vocabulary.pad
        self.tokens[item, steps] = known[first:].to(self.device)
        self.codebooks[item, first:] = -1
        self.codebooks[item, steps] = codebooks[first:].to(self.device)
        self.free[item, first:] = False
        self.free[item, steps] = (there & (frames >= len(prompt)) & (frames < length))[first:]

    @torch.no_grad()
    def run(
        self,
        conditions: Mapping[str, Any],
        generator: torch.Generator,
        sampling: CodeSampling,
        guidance_scale: float,
    ) -> list[Tensor]:
        """Codes of each sequence, its prompt included."""
        model, (batch, num_steps, streams) = self.model, self.tokens.shape
        guided = guidance_scale != 1
        condition, condition_mask = _embed_conditions(model, conditions, guided)
        capacity = condition.shape[1] + num_steps
        engine = (
            LlamaSteps(model.backbone.model, condition_mask, capacity)
            if sampling.use_cache
            else None
        )
        draw = _Draw(self.pattern, sampling, self.device)
        uniform = torch.rand(num_steps, batch, streams, generator=generator).to(self.device)
        fed = 0
        for step in range(num_steps):
            if not bool(self.free[:, step].any()):
                continue
            if engine is None:
                tokens = self.tokens[:, : step + 1]
                tokens = torch.cat([tokens, tokens]) if guided else tokens
                hidden = model(tokens, condition, condition_mask)
            else:
                hidden = engine.advance(self._inputs(condition, fed, step))
                fed = step + 1
            logits = model.backbone.lm_head(hidden[:, -1]).float()
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            free = self.free[:, step].to(self.device)
            # Never an empty clip: the first code cannot be the stop.
            picked = draw(logits, self.codebooks[:, step], uniform[step], self.stop and step > 0)
            self.tokens[:, step] = torch.where(free, picked, self.tokens[:, step])
            if self.stop:
                self._end(step)
        codes, mask = self.pattern.revert(self.tokens.cpu())
        return [item[there] for item, there in zip(codes, mask, strict=True)]

    def _inputs(self, condition: Tensor, fed: int, step: int) -> Tensor:
        """Embeddings of what the model has not seen yet of what is known before a step."""
        if fed:
            known = self.model.embed(self.tokens[:, fed - 1 : step])
        else:
            start = torch.full_like(self.tokens[:, :1], self.pattern.vocabulary.start)
            known = self.model.embed(torch.cat([start, self.tokens[:, :step]], dim=1))
        known = known.repeat(len(condition) // len(known), 1, 1)
        return known if fed else torch.cat([condition.to(known.dtype), known], dim=1)

    def _end(self, step: int) -> None:
        """Plans anew for the sequences that have just stopped."""
        stopped = (self.tokens[:, step, 0] == self.pattern.vocabulary.stop).cpu()
        for item in (stopped & self.free[:, step, 0]).nonzero()[:, 0].tolist():
            frames = self.pattern.stop_frame(step)
            assert frames is not None
            self.lengths[item] = frames
            # Streams without delay have drawn codes of the frame that is no more.
            gone = self.pattern.layout(frames).codebooks[step] < 0
            self.tokens[item, step, gone.to(self.device)] = self.pattern.vocabulary.pad
            self._plan(item, step + 1)


def _embed_conditions(
    model: CodecLM, conditions: Mapping[str, Any], guided: bool
) -> tuple[Tensor, Tensor]:
    """Embedded conditions; with guidance, those of no condition after them."""
    labels, captions = conditions["label"], list(conditions["caption"])
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, -1)])
        captions = captions + [None] * len(captions)
    return model.conditioner({"label": labels, "caption": captions})


class _Draw:
    """Draws the tokens of a step.

    Args:
        pattern: Says what each slot may hold.
        sampling: Temperature and the like.
        device: Of the logits.
    """

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
        may_stop: bool,
    ) -> Int[Tensor, "B W"]:
        """Ids drawn for the slots of a step; those of slots without a codebook mean nothing.

        Args:
            logits: Of all ids.
            codebooks: Of each slot.
            uniform: Numbers in [0, 1) that decide.
            may_stop: Whether the stop may be drawn.
        """
        low, count = self.low[codebooks], self.count[codebooks]
        ids = low[..., None] + self.choices
        outside = self.choices >= count[..., None]
        if not may_stop:
            outside = outside | (ids == self.stop)
        scores = logits.gather(1, ids.flatten(1).clamp(max=logits.shape[1] - 1))
        scores = scores.view(ids.shape).masked_fill(outside, -torch.inf)
        if self.greedy:
            return low + scores.argmax(-1)
        flat: Any = scores.flatten(0, 1)
        # The warpers look at the logits only.
        flat = self.warpers(codebooks.flatten()[:, None], flat)  # pyright: ignore
        summed = flat.softmax(-1).cumsum(-1)
        total = summed[:, -1:]
        # Rounding must not reach the sum itself, behind which there is no choice.
        target = torch.minimum(
            uniform.flatten()[:, None] * total, total.nextafter(torch.zeros_like(total))
        )
        return low + torch.searchsorted(summed, target, right=True).view_as(low)
