"""The bundled family block by block: see `tokenizer.networks.stepping`.

Encoder and decoder have the same form: a network, and beside it a linear path which waits for the
network, as that looks ahead. Their own `enter` and `leave` come before and after its blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.lapped.stereo import mid_and_side, to_channels, to_rows
from tokenizer.networks.layers import Backbone
from tokenizer.networks.noise import frame_states
from tokenizer.networks.stepping import Agreements, BlockStage, Stepper


class NetworkStepper(Stepper):
    """Rows through ``leave(blocks(h), past)``, where ``h, past = enter(rows)``.

    Args:
        backbone: Whose blocks lie between.
        enter: Maps a window of rows to what the first block gets and to what goes past the blocks.
        leave: Maps what the last block returns, and what went past, to the results.
        widths: Features of rows, of what goes past the blocks, and of results.
        behind: Rows before its own that `enter` needs for a row.
        same: Whether what goes past the blocks are the rows themselves.
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
        same: bool = False,
        agreements: Agreements,
    ) -> None:
        width, (features, past, results) = backbone.width, widths
        self._same, self._widths = same, [width, past]
        device = backbone.project.weight.device

        def first(window: Tensor) -> Tensor:
            h, linear = enter(window)
            return h.float() if same else torch.cat([h.float(), linear], dim=-1)

        def last(window: Tensor) -> Tensor:
            return leave(*window.split(self._widths, dim=-1))

        def stage(
            function: Callable[[Tensor], Tensor],
            name: str,
            widths: tuple[int, int],
            context: tuple[int, int] = (0, 0),
        ) -> BlockStage:
            return BlockStage(
                function, name, widths, context=context, device=device, agreements=agreements
            )

        entered = width if same else width + past
        self._front = stage(first, "front", (features, entered), (behind, 0))
        self._blocks = [
            # Blocks that see equally far compute products of the same shapes.
            stage(
                block.prepared(),
                f"block {block.behind} {block.ahead}",
                (width, width),
                (block.behind, block.ahead),
            )
            for block in backbone.each_block()
        ]
        self._head = stage(last, "head", (width + past, results))
        self._waiting = torch.zeros(0, past, device=device)

    def push(
        self, x: Float[Tensor, "n F"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "m F2"]:
        """Takes rows; see `Stepper.push`."""
        h = self._front.push(x, final=final, eager=eager)
        h, past = (h, x) if self._same else h.split(self._widths, dim=-1)
        waiting = torch.cat([self._waiting, past])
        for block in self._blocks:
            h = block.push(h, final=final, eager=eager)
        past, self._waiting = waiting[: len(h)], waiting[len(h) :]
        return self._head.push(torch.cat([h, past], dim=-1), final=final, eager=eager)


class EncoderStepper(Stepper):
    """Samples ``[n]``, stereo ``[n, 2]``, to latents ``[t, D]``; rows are blocks of hop samples."""

    def __init__(
        self, network: NetworkStepper, num_channels: int, hop_length: int, device: torch.device
    ) -> None:
        self._network, self._hop = network, hop_length
        self._rest = torch.zeros(num_channels, 0, device=device)

    def push(
        self, x: Float[Tensor, "n ..."], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "t D"]:
        """Takes samples; see `Stepper.push`."""
        samples = torch.cat([self._rest, mid_and_side(x.view(-1, len(self._rest)).T)], dim=1)
        if final:
            # The last frame laps over the end: it sees a block of zeros after the signal's last.
            missing = -samples.shape[1] % self._hop
            samples = torch.nn.functional.pad(samples, (0, missing + self._hop))
        whole = samples.shape[1] // self._hop * self._hop
        self._rest = samples[:, whole:].clone()
        rows = to_rows(samples[:, :whole].unflatten(1, (-1, self._hop)))
        return self._network.push(rows, final=final, eager=eager)


class DecoderStepper(Stepper):
    """Latents ``[t, D]`` to samples ``[n]``, of stereo ``[n, 2]``.

    The network returns lapped frames, and ``overlap`` makes blocks of samples of these; ``sizes``
    are the channels and the numbers of a row.
    """

    def __init__(
        self,
        network: NetworkStepper,
        overlap: Callable[[Tensor], Tensor],
        sizes: tuple[int, int],
        device: torch.device,
        agreements: Agreements,
        *,
        adds_noise: bool,
    ) -> None:
        self._network, self._adds_noise = network, adds_noise
        self._num_channels, width = sizes
        self._frames = 0
        self._overlap = BlockStage(
            overlap,
            "overlap",
            (width, width),
            context=(0, 1),
            padded=False,
            device=device,
            agreements=agreements,
        )

    def push(
        self, x: Float[Tensor, "n D"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "m ..."]:
        """Takes latents; see `Stepper.push`."""
        if self._adds_noise:
            frames = torch.arange(self._frames, self._frames + len(x), device=x.device)
            x = torch.cat([x, frame_states(frames)], dim=-1)
            self._frames += len(x)
        folded = self._network.push(x, final=final, eager=eager)
        rows = self._overlap.push(folded, final=final, eager=eager)
        audio = mid_and_side(to_channels(rows, self._num_channels))
        return audio[0] if self._num_channels == 1 else audio.T
