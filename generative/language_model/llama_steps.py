"""`LlamaSteps`: incremental decoding of a Llama with a key-value cache of fixed size.

The arithmetic is that of `transformers`' ``LlamaModel``, on the same weights. Its single steps are
slow because it copies caches and builds masks at every step, which costs as much as the matrix
products of a model of ten million parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tokenizer.errors import InputError


class LlamaSteps:
    """Hidden states of a sequence that arrives in pieces.

    ``backbone`` is a ``transformers.LlamaModel`` without biases. ``prefix_mask`` is False for the
    first positions that are padding: nothing attends to them, and they count for no position.
    ``capacity`` is the most positions, the prefix included.
    """

    def __init__(self, backbone: Any, prefix_mask: Bool[Tensor, "B P"], capacity: int) -> None:
        config, parameter = backbone.config, next(backbone.parameters())
        self.backbone, self.capacity, self.length = backbone, capacity, 0
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.kv_heads, self.eps = config.num_key_value_heads, config.rms_norm_eps
        batch, prefix = prefix_mask.shape
        shape = (batch, self.kv_heads, capacity, self.head_dim)
        self.keys = [parameter.new_zeros(shape) for _ in backbone.layers]
        self.values = [parameter.new_zeros(shape) for _ in backbone.layers]
        rest = prefix_mask.new_ones(batch, capacity - prefix)
        present = torch.cat([prefix_mask, rest], dim=1)
        # Attention without a mask is faster.
        self.present = None if bool(prefix_mask.all()) else present
        positions = present[:1] if self.present is None else present
        positions = (positions.cumsum(1) - 1).clamp(min=0)
        cos, sin = backbone.rotary_emb(parameter, position_ids=positions)
        # Rotation of pairs of channels: a roll by half the channels, with signs in the sines.
        half = self.head_dim // 2
        self.cos = cos[:, None]
        self.sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, None]
        # Attribute look-ups of modules take a noticeable share of a step of a small model.
        self.layers = [_weights(layer) for layer in backbone.layers]

    def restart(self) -> None:
        """Forgets the sequence; the next one begins."""
        self.length = 0

    def advance(self, x: Float[Tensor, "B n H"]) -> Float[Tensor, "B n H"]:
        """The hidden states of the next n positions, from their embeddings."""
        count, start = x.shape[1], self.length
        if start + count > self.capacity:
            raise InputError(f"{start + count} positions do not fit into {self.capacity}.")
        self.length += count
        cos, sin = self.cos[:, :, start : self.length], self.sin[:, :, start : self.length]
        mask = self._mask(start, count)
        # `is_causal` is for square scores: later pieces of several positions need a mask.
        causal = mask is None and count > 1
        for w, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            h = self._norm(x, w["input_layernorm"])
            both = [functional.linear(h, w["q_proj"]), functional.linear(h, w["k_proj"])]
            rotated = self._split(torch.cat(both, dim=-1))
            rolled = rotated.roll(self.head_dim // 2, -1)
            rotated = torch.addcmul(rotated * cos, rolled, sin)
            keys[:, :, start : self.length] = rotated[:, self.heads :]
            values[:, :, start : self.length] = self._split(functional.linear(h, w["v_proj"]))
            h = functional.scaled_dot_product_attention(
                rotated[:, : self.heads],
                keys[:, :, : self.length],
                values[:, :, : self.length],
                attn_mask=mask,
                is_causal=causal,
                enable_gqa=self.kv_heads != self.heads,
            )
            x = x + functional.linear(h.transpose(1, 2).flatten(2), w["o_proj"])
            h = self._norm(x, w["post_attention_layernorm"])
            gate = functional.silu(functional.linear(h, w["gate_proj"]))
            x = x + functional.linear(gate * functional.linear(h, w["up_proj"]), w["down_proj"])
        return self._norm(x, self.backbone.norm.weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], weight, self.eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(self, start: int, count: int) -> Tensor | None:
        """Which positions can be attended to, ``[B or 1, 1, count, length]``; None for all."""
        if self.present is None and (count == 1 or start == 0):
            return None
        now = torch.arange(start, self.length, device=self.cos.device)[:, None]
        allowed = (torch.arange(self.length, device=now.device) <= now)[None]
        if self.present is not None:
            # Padding attends to itself: a softmax over nothing would be NaN.
            itself = torch.arange(self.length, device=now.device) == now
            allowed = allowed & (self.present[:, None, : self.length] | itself)
        return allowed[:, None]


def _weights(layer: Any) -> dict[str, Tensor]:
    """The matrices and norms of a layer by module name, e.g. ``q_proj``."""
    return {name.split(".")[-2]: value for name, value in layer.named_parameters()}
