"""Patterns: how a grid of codes ``[T, K]`` becomes a sequence that a language model can predict.

A sequence has steps, and a step has W tokens that are predicted at once (streams). `flatten` and
`coarse_first` have one stream over an offset vocabulary; `parallel` and `delay` have one stream per
codebook. With codes written ``c[frame, codebook]``, K = 3, and E for the end of audio:

    flatten       c00 c01 c02 c10 c11 c12 E
    coarse_first  c00 c10 E c01 c02 c11 c12          (AudioLM, VALL-E: here with 1 coarse codebook)
    parallel      c00 c10 E      delay   c00 c10 E  .     (MusicGen; Copet et al., 2023)
                  c01 c11 .              .   c01 c11 .
                  c02 c12 .              .   .   c02 c12

`grouped` has one stream per code of a group of frames, and predicts the streams of a step one by
one (RQ-Transformer; Lee et al., 2022. Moshi; Défossez et al., 2024). With 2 frames a group, its
steps are ``c00 c01 c02 c10 c11 c12`` and ``E``.

Everything follows from one table per pattern: the frame and codebook of each slot. The end of audio
takes the place of the first codebook's next code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokenizer.errors import InputError

# Frames of a group: more than this is a mistake.
MAX_GROUP = 64


@dataclass(frozen=True)
class CodeVocabulary:
    """One numbering of all codes: codebook 0, the stop, codebook 1, ..., padding, start.

    The stop follows the first codebook's codes because it is only predicted in their place: so the
    ids that a slot may hold are a range.
    """

    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise InputError(f"codebook_sizes={self.codebook_sizes}: each must be at least 1.")

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """First id, and last id + 1, that a slot of each codebook may hold."""
        first, *others = self.codebook_sizes
        edges = list(accumulate([first + 1, *others], initial=0))
        return tuple(pairwise(edges))

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first id of each codebook: a code plus its offset is its id."""
        return tuple(low for low, _ in self.ranges)

    @property
    def stop(self) -> int:
        """Id of the end of audio."""
        return self.codebook_sizes[0]

    @property
    def pad(self) -> int:
        """Id of empty slots, e.g. those that a delay leaves."""
        return self.ranges[-1][1]

    @property
    def start(self) -> int:
        """Id that stands before the first step."""
        return self.pad + 1

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.start + 1


@dataclass(frozen=True)
class Layout:
    """The frame and codebook of each slot of a sequence, or of a batch; -1 for empty slots.

    The slot of the stop has codebook 0, and the number of frames as its frame.
    """

    frames: Int[Tensor, "*B S W"]
    codebooks: Int[Tensor, "*B S W"]


@dataclass(frozen=True)
class CodePattern(ABC):
    """A reversible arrangement of codes, defined by the table of a subclass."""

    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        # Sizes are checked here, not at the first sequence.
        CodeVocabulary(self.codebook_sizes)

    @property
    def vocabulary(self) -> CodeVocabulary:
        """The numbering of the codes."""
        return CodeVocabulary(self.codebook_sizes)

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.codebook_sizes)

    @property
    def num_streams(self) -> int:
        """W: tokens per step."""
        return self.layout(0).frames.shape[1]

    @abstractmethod
    def layout(self, num_frames: int) -> Layout:
        """The table for a number of frames, including the stop."""

    @property
    def draws(self) -> tuple[slice, ...]:
        """The streams of a step that are predicted together, in the order of prediction."""
        return (slice(0, self.num_streams),)

    @abstractmethod
    def stop_frame(self, step: int, stream: int = 0) -> int | None:
        """Number of frames of a sequence that stops in this slot; None if it cannot stop there."""

    def apply(
        self, codes: Int[Tensor, "B T K"], mask: Bool[Tensor, "B T"] | None = None
    ) -> Int[Tensor, "B S W"]:
        """Arranges codes, padded on the right with any values, as sequences of ids."""
        if codes.ndim != 3 or codes.shape[-1] != self.num_codebooks:
            raise InputError(
                f"codes have shape {list(codes.shape)}; expected [B, T, {self.num_codebooks}]."
            )
        lengths = _lengths(codes, mask)
        sizes = torch.tensor(self.codebook_sizes, device=codes.device)
        inside = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
        wrong = ((codes < 0) | (codes >= sizes)) & inside[..., None]
        if bool(wrong.any()):
            item, frame, k = wrong.nonzero()[0].tolist()
            raise InputError(
                f"Code {int(codes[item, frame, k])} is not in codebook {k}, which has"
                f" {self.codebook_sizes[k]} entries."
            )
        vocabulary = self.vocabulary
        ids = codes + torch.tensor(vocabulary.offsets, device=codes.device)
        # One more frame, which holds the stop.
        ids = torch.nn.functional.pad(ids, (0, 0, 0, 1), value=vocabulary.pad)
        rows = torch.arange(len(codes), device=codes.device)
        ids[rows, lengths, 0] = vocabulary.stop
        layouts = self.layouts(lengths.tolist())
        frames, codebooks = layouts.frames.to(codes.device), layouts.codebooks.to(codes.device)
        tokens = ids[rows[:, None, None], frames, codebooks]
        return tokens.masked_fill(frames < 0, vocabulary.pad)

    def layouts(self, num_frames: Sequence[int]) -> Layout:
        """Tables ``[B, S, W]`` of several sequences, padded on the right."""
        # Most batches have few lengths.
        by_length = {length: self.layout(length) for length in set(num_frames)}
        tables = [by_length[length] for length in num_frames]
        if not tables:
            empty = torch.zeros(0, 0, self.num_streams, dtype=torch.int64)
            return Layout(empty, empty)
        pad = partial(pad_sequence, batch_first=True, padding_value=-1)
        return Layout(pad([t.frames for t in tables]), pad([t.codebooks for t in tables]))

    def revert(
        self, tokens: Int[Tensor, "B S W"]
    ) -> tuple[Int[Tensor, "B T K"], Bool[Tensor, "B T"]]:
        """Inverse of `apply`: codes, 0 where padded, and the mask."""
        vocabulary = self.vocabulary
        if tokens.ndim != 3 or tokens.shape[-1] != self.num_streams:
            raise InputError(
                f"tokens have shape {list(tokens.shape)}; expected [B, S, {self.num_streams}]."
            )
        lengths = [self._count_frames(item) for item in tokens]
        layouts = self.layouts(lengths)
        missing = layouts.frames.shape[1] - tokens.shape[1]
        if missing > 0:
            raise InputError(f"A sequence is {missing} steps too short for its frames.")
        frames, codebooks = layouts.frames.to(tokens.device), layouts.codebooks.to(tokens.device)
        tail = tokens[:, frames.shape[1] :]
        tokens = tokens[:, : frames.shape[1]]
        # [.., 2]: the range of ids of each slot; of empty slots, only the padding.
        ranges = torch.tensor(
            [*vocabulary.ranges, (vocabulary.pad, vocabulary.pad + 1)], device=tokens.device
        )[codebooks]
        counts = torch.tensor(lengths, dtype=torch.int64, device=tokens.device)
        at_stop = (codebooks == 0) & (frames == counts[:, None, None])
        fits = (tokens >= ranges[..., 0]) & (tokens < ranges[..., 1])
        fits &= (tokens == vocabulary.stop) == at_stop
        if not bool(fits.all()) or bool((tail != vocabulary.pad).any()):
            where = (~fits).nonzero()[:1].tolist() or "its tail"
            raise InputError(f"A token at {where} (item, step, stream) does not belong there.")
        longest = max(lengths, default=0)
        codes = tokens.new_zeros(len(tokens), longest + 1, self.num_codebooks)
        is_code = (frames >= 0) & ~at_stop
        item = torch.arange(len(tokens), device=tokens.device)[:, None, None].expand_as(frames)
        values = tokens - ranges[..., 0]
        codes[item[is_code], frames[is_code], codebooks[is_code]] = values[is_code]
        mask = torch.arange(longest, device=tokens.device) < counts[:, None]
        return codes[:, :longest], mask

    def _count_frames(self, tokens: Int[Tensor, "S W"]) -> int:
        stops = (tokens == self.vocabulary.stop).nonzero().tolist()
        if len(stops) != 1:
            raise InputError(f"A sequence has {len(stops)} stops; expected one.")
        frames = self.stop_frame(*stops[0])
        if frames is None:
            raise InputError(f"A sequence stops at step {stops[0][0]}, in the middle of a frame.")
        return frames


@dataclass(frozen=True)
class CoarseFirstPattern(CodePattern):
    """All frames of the first ``coarse`` codebooks, the stop, then all frames of the others."""

    coarse: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.coarse <= self.num_codebooks:
            raise InputError(f"coarse={self.coarse} is not in 1..{self.num_codebooks}.")

    def layout(self, num_frames: int) -> Layout:
        """See `CodePattern.layout`."""
        grid = torch.cartesian_prod(torch.arange(num_frames), torch.arange(self.num_codebooks))
        grid = grid.reshape(num_frames, self.num_codebooks, 2)
        first, rest = grid[:, : self.coarse], grid[:, self.coarse :]
        stop = torch.tensor([[num_frames, 0]])
        slots = torch.cat([first.reshape(-1, 2), stop, rest.reshape(-1, 2)])
        return Layout(slots[:, :1], slots[:, 1:])

    def stop_frame(self, step: int, stream: int = 0) -> int | None:
        """See `CodePattern.stop_frame`."""
        return None if stream or step % self.coarse else step // self.coarse


@dataclass(frozen=True)
class DelayPattern(CodePattern):
    """Codebook k of a frame comes ``k * delay`` steps after its codebook 0.

    With delay 0 all codebooks of a frame are modelled as independent given the past.
    """

    delay: int = 1

    def layout(self, num_frames: int) -> Layout:
        """See `CodePattern.layout`."""
        codebooks = torch.arange(self.num_codebooks)
        delays = self.delay * codebooks
        frames = torch.arange(num_frames + max(int(delays[-1]), 1))[:, None] - delays
        codebooks = codebooks.expand_as(frames)
        there = (frames >= 0) & (frames < num_frames + (codebooks == 0))
        return Layout(frames.where(there, -1), codebooks.where(there, -1))

    def stop_frame(self, step: int, stream: int = 0) -> int | None:
        """See `CodePattern.stop_frame`."""
        return None if stream else step


@dataclass(frozen=True)
class GroupedPattern(CodePattern):
    """Steps of ``group_frames`` frames, whose codes are predicted one after the other.

    The streams are the codebooks of the group's first frame, then those of the next one.
    """

    group_frames: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.group_frames <= MAX_GROUP:
            raise InputError(f"group_frames={self.group_frames} is not in 1..{MAX_GROUP}.")

    def layout(self, num_frames: int) -> Layout:
        """See `CodePattern.layout`."""
        # The stop is in the group that the next frame would be in.
        groups = num_frames // self.group_frames + 1
        shape = (groups, self.group_frames, self.num_codebooks)
        frames = torch.arange(groups * self.group_frames).view(*shape[:2], 1).expand(shape)
        codebooks = torch.arange(self.num_codebooks).expand(shape)
        there = (frames < num_frames) | ((frames == num_frames) & (codebooks == 0))
        frames, codebooks = frames.where(there, -1), codebooks.where(there, -1)
        return Layout(frames.flatten(1), codebooks.flatten(1))

    @property
    def draws(self) -> tuple[slice, ...]:
        """See `CodePattern.draws`."""
        streams = self.group_frames * self.num_codebooks
        return tuple(slice(stream, stream + 1) for stream in range(streams))

    def stop_frame(self, step: int, stream: int = 0) -> int | None:
        """See `CodePattern.stop_frame`."""
        frame, codebook = divmod(stream, self.num_codebooks)
        return None if codebook else step * self.group_frames + frame


PATTERNS: dict[str, Callable[[tuple[int, ...]], CodePattern]] = {
    "flatten": lambda sizes: CoarseFirstPattern(sizes, len(sizes)),
    "parallel": lambda sizes: DelayPattern(sizes, delay=0),
    "delay": DelayPattern,
    "coarse_first": CoarseFirstPattern,
    "grouped": GroupedPattern,
}


def make_pattern(
    name: str, codebook_sizes: Sequence[int], group_frames: int | None = None
) -> CodePattern:
    """Makes a pattern of `PATTERNS`: "delay", "parallel", "flatten", "coarse_first" or "grouped".

    ``group_frames`` is of the grouped pattern; by default it is 2.

    Raises:
        ValueError: If there is no such pattern, or no codebook.
    """
    if name not in PATTERNS:
        raise InputError(f"pattern={name!r} is not one of {', '.join(PATTERNS)}.")
    if name == "grouped" and group_frames is not None:
        return GroupedPattern(tuple(codebook_sizes), group_frames)
    return PATTERNS[name](tuple(codebook_sizes))


def _lengths(codes: Tensor, mask: Tensor | None) -> Int[Tensor, " B"]:
    if mask is None:
        return torch.full((len(codes),), codes.shape[1], device=codes.device)
    if mask.shape != codes.shape[:2]:
        raise InputError(f"mask has shape {list(mask.shape)}, codes {list(codes.shape)}.")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise InputError("The mask has holes: items must be padded on their right only.")
    return mask.sum(1)
