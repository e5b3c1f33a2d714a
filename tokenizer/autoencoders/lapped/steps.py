"""The bundled family, step by step: see `tokenizer.networks.stepping`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.networks.layers import Backbone, ConvNeXtBlock
from tokenizer.networks.spectral import imdct_folded, mdct_blocks, overlap_add
from tokenizer.networks.stepping import Agreements, Queue, Stage, Stepper, block_frames, run

if TYPE_CHECKING:
    from tokenizer.autoencoders.lapped.model import LappedDecoder, LappedEncoder


def _blocks(backbone: Backbone, rows: int, device: torch.device, agreed: Agreements) -> list[Stage]:
    stages = []
    for block in backbone.blocks:
        assert isinstance(block, ConvNeXtBlock)
        widths, context = (backbone.width, backbone.width), (block.behind, block.ahead)
        # Blocks that see as much do the same sums.
        name = f"block {block.behind} {block.ahead}"
        stages.append(
            Stage(
                block.prepared(),
                widths,
                rows,
                context=context,
                device=device,
                agreed=(agreed, name),
            )
        )
    return stages


class EncoderStepper(Stepper):
    """`LappedEncoder` on its way through a signal: samples ``[n]`` to latents ``[t, D]``."""

    def __init__(self, encoder: LappedEncoder, agreed: Agreements) -> None:
        device = encoder.head.weight.device
        rows, self._hop = block_frames(device), encoder.hop_length
        self._width, dim = encoder.backbone.width, encoder.head.out_features

        def see(window: Tensor) -> Tensor:
            c = mdct_blocks(window)
            h = encoder.backbone.enter(encoder.features(c)).float()
            return torch.cat([h, encoder.linear_path(c)], dim=-1)

        def conclude(window: Tensor) -> Tensor:
            h, linear = window.split([self._width, dim], dim=-1)
            z = encoder.head(encoder.backbone.norm_out(h)).float() + linear
            return z / encoder.latent_scale

        wide = self._width + dim
        self._front = Stage(
            see,
            (self._hop, wide),
            rows,
            context=(1, 0),
            device=device,
            padded=False,
            agreed=(agreed, "front"),
        )
        self._blocks = _blocks(encoder.backbone, rows, device, agreed)
        self._linear = Queue()  # The linear path waits for the network.
        self._head = Stage(conclude, (wide, dim), rows, device=device, agreed=(agreed, "head"))
        self._rest = torch.zeros(0, device=device)

    def push(
        self, x: Float[Tensor, " n"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "t D"]:
        """Takes samples; see `Stepper.push`."""
        x = torch.cat([self._rest, x])
        if final:
            # The last frame laps over the end: it sees a block of zeros after the signal's last.
            missing = -len(x) % self._hop
            x = torch.cat([x, x.new_zeros(missing + self._hop)])
        whole = len(x) // self._hop * self._hop
        x, self._rest = x[:whole], x[whole:].clone()
        seen = self._front.push(x.view(-1, self._hop), final=final, eager=eager)
        h, linear = seen.split([self._width, seen.shape[-1] - self._width], dim=-1)
        self._linear.push(linear)
        h = run(self._blocks, h, final=final, eager=eager)
        known = torch.cat([h, self._linear.pop(len(h))], dim=-1)
        return self._head.push(known, final=final, eager=eager)


class DecoderStepper(Stepper):
    """`LappedDecoder` on its way through latents: ``[t, D]`` to samples ``[n]``."""

    def __init__(self, decoder: LappedDecoder, noise_level: float, agreed: Agreements) -> None:
        device = decoder.head.weight.device
        rows, width = block_frames(device), decoder.backbone.width
        hop, dim = decoder.head.out_features // 3, decoder.backbone.project.in_features
        shift = decoder.shift(torch.full((1,), noise_level, device=device))[0].detach()

        def see(z: Tensor) -> Tensor:
            return decoder.backbone.enter(z, shift).float()

        def conclude(window: Tensor) -> Tensor:
            h, z = window.split([width, dim], dim=-1)
            return imdct_folded(decoder.coefficients(decoder.backbone.norm_out(h), z))

        self._front = Stage(see, (dim, width), rows, device=device, agreed=(agreed, "front"))
        self._blocks = _blocks(decoder.backbone, rows, device, agreed)
        self._linear = Queue()
        self._head = Stage(
            conclude, (width + dim, hop), rows, device=device, agreed=(agreed, "head")
        )
        self._overlap = Stage(
            overlap_add,
            (hop, hop),
            rows,
            context=(0, 1),
            device=device,
            padded=False,
            agreed=(agreed, "overlap"),
        )

    def push(
        self, x: Float[Tensor, "n D"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, " m"]:
        """Takes latents; see `Stepper.push`."""
        self._linear.push(x)
        h = run([self._front, *self._blocks], x, final=final, eager=eager)
        known = torch.cat([h, self._linear.pop(len(h))], dim=-1)
        return run([self._head, self._overlap], known, final=final, eager=eager).flatten()
