"""`CausalCalls`: the calls of `transformers`' causal language models, for `CodecLM`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import Cache, GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from generative.conditioning import Conditioner
from generative.language_model.code_processors import CodeRanges
from generative.language_model.patterns import CodePattern
from tokenizer.errors import InputError


class CausalCalls:
    """``forward`` with loss and logits, and ``generate``; for `GenerationMixin` models.

    Ids are those of `CodeVocabulary`. A sequence is ``start``, then the tokens that
    `CodePattern.apply` gives: ``[B, S]`` where steps have one token, else ``[B, S, W]``. Classes
    and captions are not in it: they are arguments of their own.
    """

    config: Any
    pattern: CodePattern
    conditioner: Conditioner
    backbone: Any
    embed: Callable[[Tensor], Tensor]

    def forward(
        self,
        input_ids: Int[Tensor, "B S *W"] | None = None,
        attention_mask: Int[Tensor, "B P"] | Bool[Tensor, "B P"] | None = None,
        labels: Int[Tensor, "B S *W"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "B S H"] | None = None,
        class_labels: Int[Tensor, " B"] | None = None,
        condition: Float[Tensor, "B C H"] | None = None,
        condition_mask: Bool[Tensor, "B C"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Predicts the token after each one.

        The logits ``[B, S, V]`` are of all ids: those of a codebook are a range of them
        (`CodeVocabulary.ranges`), which is where its softmax runs, also in the loss.

        Args:
            input_ids: Ids; with a cache that is not empty, the new ones.
            attention_mask: 0 for padding, of cached and new steps. Default: no padding.
            labels: ``input_ids``, with -100 for what is not to be learned; paddings are not.
            inputs_embeds: What `embed` makes of ``input_ids``, instead of these.
            class_labels: Indices of classes, -1 for none. Default: none.
            condition: What `Conditioner` returned, instead of ``class_labels``: for captions.
            condition_mask: Likewise.
            past_key_values: Keys and values of earlier steps, the conditions among them.
            use_cache: Whether to return them. Default: without labels.
            output_attentions: Whether to return attention weights, which only the attention
                "eager" has. Default: the configuration's. Positions begin with the conditions.
            output_hidden_states: Likewise, what goes into and comes out of each layer, or of those
                with these indices.
            return_dict: False returns a tuple. Default: the configuration's.
            logits_to_keep: Number of last steps to return logits of; 0 for all.
        """
        if self.config.pattern == "grouped":
            raise InputError(
                "forward() predicts the codes of a step independently, which the grouped pattern"
                " does not: use training_loss() and sample()."
            )
        inputs = self._embedded(input_ids, inputs_embeds)
        batch, new = inputs.shape[:2]
        if condition is None or condition_mask is None:
            none = torch.full((batch,), -1, device=inputs.device)
            label = none if class_labels is None else class_labels
            prefix, prefix_mask = self.conditioner({"label": label})
        else:
            prefix, prefix_mask = condition, condition_mask
        done = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if not done:
            inputs = torch.cat([prefix.to(inputs.dtype), inputs], dim=1)
        steps = max(done - prefix.shape[1], 0) + new
        everything = prefix_mask.new_ones(batch, steps)
        present = everything if attention_mask is None else attention_mask.bool()
        present = torch.cat([prefix_mask, present], dim=1)
        outputs = self.backbone.model(
            inputs_embeds=inputs,
            attention_mask=present.long(),
            position_ids=(present.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :],
            past_key_values=past_key_values,
            use_cache=labels is None if use_cache is None else use_cache,
            output_attentions=_chosen(output_attentions, self.config.output_attentions),
            output_hidden_states=_chosen(output_hidden_states, self.config.output_hidden_states),
        )
        hidden = outputs.last_hidden_state[:, -new:]
        logits = self.backbone.lm_head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else self._next_token_loss(logits, labels)
        cache, states = outputs.past_key_values, outputs.hidden_states
        output = CausalLMOutputWithPast(loss, logits, cache, states, outputs.attentions)
        return output if _chosen(return_dict, self.config.return_dict) else output.to_tuple()

    def _embedded(self, ids: Tensor | None, embedded: Tensor | None) -> Tensor:
        """Input embeddings ``[B, S, H]`` of the steps, given as ids or as such."""
        if (ids is None) == (embedded is None):
            raise InputError("forward() takes input_ids or inputs_embeds: give one of them.")
        if ids is None:
            return embedded  # pyright: ignore[reportReturnType]
        steps = ids if ids.ndim == 3 else ids[..., None]
        if steps.shape[-1] != self.pattern.num_streams:
            raise InputError(
                f"input_ids have shape {list(ids.shape)}; the steps of this pattern have"
                f" {self.pattern.num_streams} tokens."
            )
        return self.embed(steps)

    def _next_token_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the labels, each within the range of its codebook."""
        targets = (labels if labels.ndim == 3 else labels[..., None])[:, 1:]
        if logits.shape[1] != labels.shape[1]:
            raise InputError("With labels= the logits of all steps are needed: logits_to_keep=0.")
        scores = logits[:, :-1, None].expand(-1, -1, targets.shape[2], -1)
        total, count = logits.new_zeros((), dtype=torch.float32), 0
        for low, high in self.pattern.vocabulary.ranges:
            inside = (targets >= low) & (targets < high)
            part = scores[inside][:, low:high].float()
            total = total + functional.cross_entropy(part, targets[inside] - low, reduction="sum")
            count = count + inside.sum()
        return total / torch.as_tensor(count).clamp(min=1)

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Int[Tensor, "B S"] | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """``transformers.GenerationMixin.generate`` for the flatten pattern; see `CodeRanges`.

        It draws one token a step and ends a sequence at its stop, which other patterns have in the
        middle or beside other tokens: `CodecLM.sample` generates those too, and takes less time.

        Args:
            inputs: Prompts, left-padded, each with its ``start``. Default: ``start`` alone.
            generation_config: As there.
            logits_processor: Applied after `CodeRanges`.
            kwargs: As there, and those of `forward`. ``max_new_tokens`` is the number of frames
                times that of codebooks; ``eos_token_id=None`` lets no sequence end before it.

        Returns:
            Ids, the prompts included; `ids_to_codes` turns them into codes.
        """
        if self.config.pattern != "flatten":
            raise InputError(
                f"generate() is for the flatten pattern, this is {self.config.pattern!r}: sample()"
                " generates all patterns."
            )
        if kwargs.get("cache_implementation") is not None:
            raise InputError("cache_implementation: there is only the default, which grows.")
        stop = kwargs.get("eos_token_id", self.generation_config.eos_token_id) is not None  # pyright: ignore
        ranges = CodeRanges(self.pattern.codebook_sizes, stop=stop)
        processors = LogitsProcessorList([ranges, *(logits_processor or ())])
        generate = super().generate  # pyright: ignore[reportAttributeAccessIssue]
        return generate(inputs, generation_config, processors, **kwargs)

    def ids_to_codes(self, ids: Int[Tensor, "B S"]) -> list[Int[Tensor, "_ K"]]:
        """Codes of sequences that `generate` returned, on the CPU."""
        vocabulary, width = self.pattern.vocabulary, self.pattern.num_codebooks
        offsets = torch.tensor(vocabulary.offsets)
        ends = torch.tensor([vocabulary.stop, vocabulary.pad])
        codes = []
        for row in ids.cpu():
            rest = row[int((row == vocabulary.start).int().argmax()) + 1 :]
            end = torch.isin(rest, ends).nonzero()[:1, 0].tolist()
            tokens = rest[: end[0]] if end else rest
            if len(tokens) % width:
                raise InputError(
                    f"A sequence has {len(tokens)} codes: the last frame of {width} is incomplete."
                )
            codes.append(tokens.view(-1, width) - offsets)
        return codes


def _chosen(value: Any, default: Any) -> Any:
    return default if value is None else value
