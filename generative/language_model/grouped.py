"""`GroupNetwork`: the codes of a group of frames as one step, predicted one after the other.

The large network sees a step a group: the frames of a group are embedded side by side and mapped
to its width. From its hidden state a small causal transformer predicts the codes of the next group
(RQ-Transformer; Lee et al., 2022). Embeddings and output matrix are those of the large network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaModel

from generative.language_model.config import CodecLMConfig
from generative.language_model.llama_steps import LlamaSteps

# Layers of the small transformer. It has half the heads, and so half the width.
LAYERS = 2


class GroupNetwork(nn.Module):
    """The small transformer, and the ways into it and out of it."""

    def __init__(self, config: CodecLMConfig) -> None:
        super().__init__()
        self.frames, width = config.group_frames, config.width
        heads = max(config.heads // 2, 1)
        small = config.llama(1, width=width // config.heads * heads, depth=LAYERS, heads=heads)
        small._attn_implementation = config._attn_implementation
        self.enter = nn.Linear(self.frames * width, width, bias=False)
        self.down = nn.Linear(width, small.hidden_size, bias=False)
        self.layers: Any = LlamaModel(small)
        del self.layers.embed_tokens  # Its inputs are embeddings.
        self.up = nn.Linear(small.hidden_size, width, bias=False)

    def merge(self, codes: Float[Tensor, "B S W H"]) -> Float[Tensor, "B S H"]:
        """The embedding of each group, from those of its codes."""
        frames = codes.unflatten(2, (self.frames, -1)).sum(3)
        return self.enter(frames.flatten(2))

    def forward(
        self, hidden: Float[Tensor, "M H"], codes: Float[Tensor, "M n H"]
    ) -> Float[Tensor, "M n+1 H"]:
        """What predicts each of the first n + 1 codes of a group.

        ``hidden`` is the hidden state of the large network, ``codes`` are embeddings of the first
        n codes.
        """
        inputs = self.down(torch.cat([hidden[:, None], hidden[:, None] + codes], dim=1))
        return self.up(self.layers(inputs_embeds=inputs, use_cache=False).last_hidden_state)

    def steps(
        self, hidden: Float[Tensor, "M H"], cache: LlamaSteps
    ) -> Callable[[Float[Tensor, "M n H"]], Float[Tensor, "M H"]]:
        """As `forward`, for groups whose codes arrive one by one: returns the last prediction."""
        cache.restart()

        def predict(codes: Tensor) -> Tensor:
            start = cache.length
            inputs = torch.cat([hidden[:, None], hidden[:, None] + codes], dim=1)[:, start:]
            return self.up(cache.advance(self.down(inputs))[:, -1])

        return predict

    def new_cache(self, count: int, streams: int) -> LlamaSteps:
        """A cache for ``count`` groups at once, which `steps` takes."""
        everything = torch.ones(count, 1, dtype=torch.bool, device=self.down.weight.device)
        return LlamaSteps(self.layers, everything, streams)


def teacher_forced(
    network: GroupNetwork, hidden: Float[Tensor, "B S H"], codes: Float[Tensor, "B S W H"]
) -> Float[Tensor, "B S W H"]:
    """What predicts each code of each group, given the codes before it."""
    states = network(hidden.flatten(0, 1), codes.flatten(0, 1)[:, :-1])
    return states.unflatten(0, hidden.shape[:2])
