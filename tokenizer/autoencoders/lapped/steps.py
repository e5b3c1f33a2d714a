"""The bundled family block by block: see `tokenizer.networks.stepping`.

Encoder and decoder have the same form: a network, and beside it a linear path which waits for the
network, as that looks ahead. What is specific to each comes in as two functions, `enter` (before
the network's blocks) and `leave` (after them), which the whole-signal forward pass uses too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.networks.layers import Backbone
from tokenizer.networks.spectral import overlap_add
from tokenizer.networks.stepping import Agreements, BlockStage, Queue, Stepper, run


class NetworkStepper(Stepper):
    """Rows through ``leave(blocks(h), linear)``, where ``h, linear = enter(rows)``.

    Args:
        backbone: Whose blocks lie between.
        enter: Maps a window of rows to what the first block gets and to what goes past the blocks.
        leave: Maps what the last block returns, and what went past, to the results.
        widths: Features of rows, of what goes past the blocks, and of results.
        behind: Rows before its own that `enter` needs for a row.
        agreements: Of this encoder or decoder.
    """

    def __init__(
        self,
        backbone: Backbone,
        enter: Callable[[Tensor], tuple[Tensor, Tensor]],
        leave: Callable[[Tensor, Tensor], Tensor],
        *,
        widths: tuple[int, int, int],
        behind: int = 0,
        agreements: Agreements,
    ) -> None:
        width, (features, past, results) = backbone.width, widths
        self._widths = [width, past]
        device = backbone.project.weight.device

        def first(window: Tensor) -> Tensor:
            h, linear = enter(window)
            return torch.cat([h.float(), linear], dim=-1)

        def last(window: Tensor) -> Tensor:
            return leave(*window.split(self._widths, dim=-1))

        self._front = BlockStage(
            first,
            "front",
            (features, width + past),
            context=(behind, 0),
            device=device,
            agreements=agreements,
        )
        self._blocks = [
            BlockStage(
                block.prepared(),
                # Blocks that see equally far compute products of the same shapes.
                f"block {block.behind} {block.ahead}",
                (width, width),
                context=(block.behind, block.ahead),
                device=device,
                agreements=agreements,
            )
            for block in backbone.each_block()
        ]
        self._linear = Queue()
        self._head = BlockStage(
            last, "head", (width + past, results), device=device, agreements=agreements
        )

    def push(
        self, x: Float[Tensor, "n F"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "m F2"]:
        """Takes rows; see `Stepper.push`."""
        entered = self._front.push(x, final=final, eager=eager)
        h, linear = entered.split(self._widths, dim=-1)
        self._linear.push(linear)
        h = run(self._blocks, h, final=final, eager=eager)
        left = torch.cat([h, self._linear.pop(len(h))], dim=-1)
        return self._head.push(left, final=final, eager=eager)


class EncoderStepper(Stepper):
    """Samples ``[n]`` to latents ``[t, D]``; a row of the network is a block of samples.

    Args:
        network: Maps blocks of samples to latents.
        hop_length: Samples of a block.
        device: Where the network is.
    """

    def __init__(self, network: NetworkStepper, hop_length: int, device: torch.device) -> None:
        self._network = network
        self._hop = hop_length
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
        return self._network.push(x.view(-1, self._hop), final=final, eager=eager)


class DecoderStepper(Stepper):
    """Latents ``[t, D]`` to samples ``[n]``; each result of the network laps over the next.

    Args:
        network: Maps latents to lapped frames, as `imdct_folded` returns them.
        hop_length: Samples of a block.
        device: Where the network is.
        agreements: Of this decoder.
    """

    def __init__(
        self,
        network: NetworkStepper,
        hop_length: int,
        device: torch.device,
        agreements: Agreements,
    ) -> None:
        self._network = network
        self._overlap = BlockStage(
            overlap_add,
            "overlap",
            (hop_length, hop_length),
            context=(0, 1),
            padded=False,
            device=device,
            agreements=agreements,
        )

    def push(
        self, x: Float[Tensor, "n D"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, " m"]:
        """Takes latents; see `Stepper.push`."""
        folded = self._network.push(x, final=final, eager=eager)
        return self._overlap.push(folded, final=final, eager=eager).flatten()
