"""`CodecLM`: a language model of the tokenizer's codes, on `transformers`' Llama.

A pattern (`generative.language_model.patterns`) arranges the codes as steps of tokens. With
``delay`` and ``parallel`` the embeddings of a step's codebooks are summed, and each codebook has an
output head. With ``flatten`` and ``coarse_first`` the model is an ordinary causal language model
over an offset vocabulary. All have the same weights: the heads are ranges of rows of one output
matrix; ``grouped`` has a small network besides (`generative.language_model.grouped`). In training
and in sampling, the softmax runs over the range of ids that a slot may hold.

Code files are not entropy-coded with this model: a decoder needs exactly the encoder's
probabilities, and matrix products differ in their last bits between processors and library
versions. `generative.evaluation.code_bits.language_model_bits` measures what it would save.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LlamaForCausalLM,
    PreTrainedModel,
)

from generative.conditioning import Conditioner, extrapolate
from generative.language_model.causal import CausalCalls
from generative.language_model.config import CodecLMConfig
from generative.language_model.grouped import GroupNetwork, teacher_forced
from generative.language_model.llama_steps import LlamaSteps
from generative.language_model.patterns import CodePattern, make_pattern
from generative.language_model.sampling import StepLogits, generate_codes
from generative.protocol import Batch, CodeSampling, ConditionedModel, GenerationRequest, TokenRow
from tokenizer.devices import send
from tokenizer.errors import InputError, MissingFileError
from tokenizer.hub import check_name
from tokenizer.saving import load_pretrained


@dataclass(frozen=True)
class CodeNats:
    """Nats and numbers of a batch: of the codes of each codebook, and of the ends of audio."""

    codes: Float[Tensor, " K"]
    counts: Int[Tensor, " K"]
    stops: Float[Tensor, ""]
    stop_count: Int[Tensor, ""]


class CodecLM(ConditionedModel, CausalCalls, PreTrainedModel, GenerationMixin):  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
    """A causal language model of the tokenizer's codes, made from a `CodecLMConfig`.

    `sample` generates codes. ``forward`` and ``generate`` are those of `transformers`' causal
    language models, as far as these fit codes: see `CausalCalls`.
    """

    config_class = CodecLMConfig
    base_model_prefix = "codec_lm"
    _no_split_modules: ClassVar = ["LlamaDecoderLayer"]  # pyright: ignore
    _supports_sdpa = True
    _supports_flash_attn = True
    supports_gradient_checkpointing = True

    column = "codes"

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__(config)
        self.pattern: CodePattern = make_pattern(
            config.pattern, config.codebook_sizes, config.group_frames
        )
        # Its own embedding and head serve an offset vocabulary.
        llama = config.llama(self.pattern.vocabulary.size)
        llama._attn_implementation = config._attn_implementation
        self.backbone = LlamaForCausalLM(llama)
        self.group = GroupNetwork(config) if config.pattern == "grouped" else None
        self.conditioner = Conditioner(
            config.width,
            labels=tuple(config.labels),
            text_encoder=config.text_encoder,
            dropout=config.condition_dropout,
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces it."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The output matrix, of which the heads are ranges of rows."""
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces it."""
        self.backbone.set_output_embeddings(new_embeddings)

    @property
    def num_codebooks(self) -> int:
        """How many of the tokenizer's codebooks it models."""
        return self.pattern.num_codebooks

    @property
    def context_frames(self) -> int | None:
        """The longest sequence, in frames, that it was trained on; None for no limit."""
        return self.config.context_frames

    # Predicting

    def embed(self, tokens: Int[Tensor, "B S W"]) -> Float[Tensor, "B S H"]:
        """Input embeddings of steps: the sum of the embeddings of each step's tokens."""
        codes = self.backbone.get_input_embeddings()(tokens)
        return codes.sum(2) if self.group is None else self.group.merge(codes)

    def hidden_states(
        self,
        tokens: Int[Tensor, "B S W"],
        condition: Float[Tensor, "B P H"],
        condition_mask: Bool[Tensor, "B P"],
    ) -> Float[Tensor, "B S H"]:
        """Hidden states ``[B, S, H]`` from which the tokens of each step are predicted.

        A step's hidden state depends on the steps before it and on the embeddings of `Conditioner`.
        """
        inputs = self._prefixed(tokens[:, :-1], condition)
        options: dict[str, Tensor] = {}
        # A single condition is never padding.
        if condition_mask.shape[1] > 1 and not bool(condition_mask.all()):
            rest = condition_mask.new_ones(len(tokens), tokens.shape[1])
            present = torch.cat([condition_mask, rest], dim=1)
            options["attention_mask"] = present.long()
            options["position_ids"] = (present.cumsum(1) - 1).clamp(min=0)
        hidden = self.backbone.model(inputs_embeds=inputs, use_cache=False, **options)
        return hidden.last_hidden_state[:, condition.shape[1] :]

    def _prefixed(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Input embeddings: the conditions, the start, and the tokens, for each condition."""
        tokens = tokens.repeat(len(condition) // max(len(tokens), 1), 1, 1)
        start = tokens.new_full((len(tokens), 1, tokens.shape[2]), self.pattern.vocabulary.start)
        embedded = self.embed(torch.cat([start, tokens], dim=1))
        return torch.cat([condition.to(embedded.dtype), embedded], dim=1)

    def step_logits(
        self,
        conditions: Mapping[str, Any],
        num_steps: int,
        *,
        guidance_scale: float = 1.0,
        use_cache: bool = True,
    ) -> StepLogits:
        """Returns a function that predicts at most ``num_steps`` steps, one after the other.

        The function takes the tokens ``[B, n, W]`` of the first n steps and returns another, which
        takes the first tokens of the next step and returns logits ``[B, V]``, guidance applied.
        With the cache each call must continue the tokens of the call before; the results are the
        same.
        """
        condition, mask = self.conditioner.with_guidance(conditions, guidance_scale)
        prefix = condition.shape[1]
        cache = LlamaSteps(self.backbone.model, mask, prefix + num_steps) if use_cache else None
        slots = self._slot_states(len(condition), use_cache)

        def logits(tokens: Tensor) -> Callable[[Tensor], Tensor]:
            copies = len(condition) // len(tokens)
            if cache is None:
                # `hidden_states` does not look at the last step.
                padded = functional.pad(tokens, (0, 0, 0, 1))
                hidden = self.hidden_states(padded.repeat(copies, 1, 1), condition, mask)
            elif cache.length == 0:
                hidden = cache.advance(self._prefixed(tokens, condition))
            else:
                new = self.embed(tokens[:, cache.length - prefix - 1 :])
                hidden = cache.advance(new.repeat(copies, 1, 1))
            states = slots(hidden[:, -1])

            def slot_logits(tokens: Tensor) -> Tensor:
                predicted = self.backbone.lm_head(states(tokens.repeat(copies, 1)))
                return extrapolate(predicted.float(), guidance_scale)

            return slot_logits

        return logits

    def _slot_states(
        self, count: int, use_cache: bool
    ) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
        """From hidden states of steps ``[R, H]``, and tokens in these, what predicts the next."""
        group, embedding = self.group, self.backbone.get_input_embeddings()
        if group is None:
            return lambda hidden: lambda _: hidden
        cache = group.new_cache(count, self.pattern.num_streams) if use_cache else None

        def states(hidden: Tensor) -> Callable[[Tensor], Tensor]:
            if cache is None:
                return lambda tokens: group(hidden, embedding(tokens))[:, -1]
            predict = group.steps(hidden, cache)
            return lambda tokens: predict(embedding(tokens))

        return states

    def code_nats(self, batch: Batch, generator: torch.Generator | None = None) -> CodeNats:
        """Cross-entropies of a batch, in nats.

        Without ``ended`` only items shorter than the longest, which may be cropped, count as ended.
        The generator, on the CPU, draws which conditions are hidden; without one none are. The
        batch may be on the CPU: then its codes are arranged without waiting for a GPU.
        """
        codes, mask = batch["codes"], batch["mask"]
        if codes.shape[-1] < self.num_codebooks:
            raise InputError(
                f"The codes have {codes.shape[-1]} codebooks, the model {self.num_codebooks}."
            )
        arranged = self.pattern.apply(codes[..., : self.num_codebooks], mask)
        lengths = mask.sum(1)
        ended = batch.get("ended")
        ended = lengths < mask.shape[1] if ended is None else ended
        slots = self._slots(arranged.cpu(), lengths.tolist(), ended.cpu())
        tokens, ended = send(arranged, self.device), send(ended, self.device)
        hidden = self.hidden_states(tokens, *self.conditioner(batch, generator=generator))

        if self.group is None:
            states, streams = hidden.flatten(0, 1), tokens.shape[2]
        else:
            embedding = self.backbone.get_input_embeddings()
            states = teacher_forced(self.group, hidden, embedding(tokens)).flatten(0, 2)
            streams = 1

        stop, head = self.pattern.vocabulary.stop, self.backbone.lm_head.weight
        nats, counts = [], []
        stops, stop_count = hidden.new_zeros((), dtype=torch.float32), ended.sum()
        for k, (low, high) in enumerate(self.pattern.vocabulary.ranges):
            targets = tokens.flatten()[slots[k]]
            logits = functional.linear(states[slots[k] // streams], head[low:high])
            each = functional.cross_entropy(logits.float(), targets - low, reduction="none")
            is_stop = targets == stop
            if k == 0:
                stops = (each * is_stop).sum()
            nats.append((each * ~is_stop).sum())
            counts.append((~is_stop).sum())
        return CodeNats(torch.stack(nats), torch.stack(counts), stops, stop_count)

    def _slots(
        self, tokens: Int[Tensor, "B S W"], lengths: list[int], ended: Bool[Tensor, " B"]
    ) -> tuple[Int[Tensor, " n"], ...]:
        """Places of each codebook's tokens among all, on the model's device.

        Without the stops of items that have not ended. All arguments are on the CPU.
        """
        codebooks = self.pattern.layouts(lengths).codebooks
        cut = (tokens == self.pattern.vocabulary.stop) & ~ended[:, None, None]
        numbers = codebooks.masked_fill(cut, -1).flatten().numpy().astype(np.int16)
        # Stable: within a codebook they stay in their order.
        order = torch.from_numpy(np.argsort(numbers, kind="stable"))
        counts = np.bincount(numbers + 1, minlength=self.num_codebooks + 1).tolist()
        return send(order, self.device).split(counts)[1:]

    def training_loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean cross-entropy per code (and end of audio), in nats; the batch is as for `code_nats`.

        Also ``bits_per_code`` over all codebooks, and ``bits_per_code_0``, ... of each.
        """
        nats = self.code_nats(batch, generator)
        total, count = nats.codes.sum() + nats.stops, nats.counts.sum() + nats.stop_count
        bits = nats.codes.detach() / nats.counts.clamp(min=1) / math.log(2)
        mean = nats.codes.detach().sum() / nats.counts.sum().clamp(min=1) / math.log(2)
        return {
            "loss": total / count.clamp(min=1),
            "bits_per_code": mean,
            **{f"bits_per_code_{k}": value for k, value in enumerate(bits)},
        }

    # Generating

    def sample(
        self,
        conditions: Mapping[str, Any],
        num_frames: int | Sequence[int],
        generator: torch.Generator,
        *,
        sampling: CodeSampling | None = None,
        guidance_scale: float | int = 1.0,
        prompts: Sequence[Int[Tensor, "_ K"] | None] = (),
    ) -> list[Int[Tensor, "_ K"]]:
        """Samples codes of each item, int64 on the CPU.

        Args:
            conditions: ``label`` int64 ``[B]`` and ``caption``, a list of B.
            num_frames: T of each item, its prompt included.
            generator: On the CPU: the same on every device.
            sampling: Temperature, top-k, top-p, cache and stop.
            guidance_scale: Scale of classifier-free guidance; 1 for none.
            prompts: Codes that each item begins with, or None; empty means None for all.
        """
        sampling, scale = sampling or CodeSampling(), float(guidance_scale)
        return generate_codes(self, conditions, num_frames, generator, sampling, scale, prompts)

    def generate_rows(
        self, request: GenerationRequest, generator: torch.Generator
    ) -> list[TokenRow]:
        """Rows with ``codes`` for the tokenizer's ``decode_codes``.

        Prompts are rows with ``codes`` of at least the model's codebooks. The gain is the prompt's,
        else the request's, else that of the class in the training data, else the tokenizer's
        default.
        """
        prompts: list[Tensor | None] = []
        for row in request.prompts or [None] * request.batch_size:
            codes = None if row is None else torch.as_tensor(row["codes"]).long()
            prompts.append(None if codes is None else codes[:, : self.num_codebooks])
        generated = self.sample(
            request.conditions(self.labels),
            request.num_frames,
            generator,
            sampling=request.codes,
            guidance_scale=request.guidance_scale,
            prompts=prompts,
        )
        kind = torch.int16 if max(self.config.codebook_sizes) <= 2**15 else torch.int32
        rows = []
        for index, codes in enumerate(generated):
            missing = request.num_frames - len(codes)
            if missing and self.config.hop_length is None:
                raise InputError("Stops need config.hop_length, which is None.")
            num_samples = max(request.num_samples - missing * (self.config.hop_length or 0), 1)
            row = request.columns(index, self.gain(request.labels[index]))
            rows.append(row | {"codes": codes.to(kind).numpy(), "num_samples": num_samples})
        return rows

    # Loading

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, pretrained_model_name_or_path: str | Path | None, **kwargs: Any
    ) -> CodecLM:
        """Loads a folder or hub repository; arguments as for ``transformers.PreTrainedModel``.

        The name is None if ``config`` and ``state_dict`` are given.

        Raises:
            FileNotFoundError: If a folder was named that holds no model.
            ValueError: If the weights do not fit the configuration.
        """
        source = pretrained_model_name_or_path
        name = "state_dict" if source is None else str(source)
        if source is not None:
            check_name(name, **kwargs)
            folder = Path(name, kwargs.get("subfolder") or "")
            if Path(name).exists() and not (folder / "config.json").is_file():
                raise MissingFileError(f"{folder} holds no config.json: there is no model in it.")
        want_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # `load_pretrained` names them.
        base: Any = super()

        def load(_: str, **options: Any) -> Any:
            return base.from_pretrained(source, **options)

        model, info = load_pretrained(load, name, "language model of codes", **kwargs)
        if model.generation_config.bos_token_id is None:  # Earlier versions saved none.
            model.generation_config = GenerationConfig.from_model_config(model.config)
        return (model, info) if want_info else model  # pyright: ignore[reportReturnType]


AutoModel.register(CodecLMConfig, CodecLM)
AutoModelForCausalLM.register(CodecLMConfig, CodecLM)
