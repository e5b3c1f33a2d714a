"""The arithmetic that a generative model does for a second of audio."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Length of the clip that is counted: attention costs more in longer clips.
COUNTED_SECONDS = 10


def multiply_adds(model: Any, frame_rate: float | int) -> float:
    """Multiply-adds per second of audio, of one forward pass over a clip of `COUNTED_SECONDS`.

    Args:
        model: A `CodecLM` or `LatentDiffusion`. A language model makes all codes of a clip in one
            pass's arithmetic; a diffusion model needs a pass for every step of its solver.
        frame_rate: Frames per second of the tokenizer.
    """
    frames = round(COUNTED_SECONDS * frame_rate)
    batch: dict[str, Any] = {
        "mask": torch.ones(1, frames, dtype=torch.bool),
        "label": torch.tensor([-1]),
        "ended": torch.tensor([False]),
        "caption": [None],
    }
    causal = model.column == "codes"
    if causal:
        batch["codes"] = torch.zeros(1, frames, model.num_codebooks, dtype=torch.int64)
    else:
        batch["latents"] = torch.zeros(1, frames, model.config["latent_dim"])
    generator = torch.Generator().manual_seed(0)
    # Only this attention consists of products that are counted on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.training_loss(batch, generator)
    total = counter.get_total_flops()
    if causal:
        # Products of batches are those of attention, which looks at half of the positions.
        total -= counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0) / 2
    return total / 2 / COUNTED_SECONDS
