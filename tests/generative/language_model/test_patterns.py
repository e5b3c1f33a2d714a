"""Patterns: reversible, valid at every position, and padding changes nothing."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from models import REFUSED

from generative.language_model.patterns import (
    PATTERNS,
    CoarseFirstPattern,
    CodePattern,
    CodeVocabulary,
    make_pattern,
)

NAMES = sorted(PATTERNS)
WIDE = settings(deadline=None, max_examples=60)


CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "sizes": st.lists(st.integers(1, 9), min_size=1, max_size=5),
        "coarse": st.integers(1, 5),
        "group": st.integers(1, 4),
        "lengths": st.lists(st.integers(0, 7), min_size=1, max_size=4),
        "seed": st.integers(0, 99),
    }
)


def ragged_codes(case: dict) -> tuple[CodePattern, torch.Tensor, torch.Tensor]:
    sizes, lengths = tuple(case["sizes"]), case["lengths"]
    pattern = make_pattern(case["name"], sizes, case["group"])
    if case["name"] == "coarse_first":
        pattern = CoarseFirstPattern(sizes, min(case["coarse"], len(sizes)))
    generator = torch.Generator().manual_seed(case["seed"])
    top = torch.tensor(sizes)
    codes = (torch.rand(len(lengths), max(lengths), len(sizes), generator=generator) * top).long()
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return pattern, codes.masked_fill(~mask[..., None], 0), mask


@WIDE
@given(CASES)
def test_revert_inverts_apply(case):
    pattern, codes, mask = ragged_codes(case)
    found, found_mask = pattern.revert(pattern.apply(codes, mask))
    assert torch.equal(found, codes)
    assert torch.equal(found_mask, mask)


@WIDE
@given(CASES)
def test_a_batch_is_its_items_one_by_one(case):
    pattern, codes, mask = ragged_codes(case)
    # Whatever is behind an item's end must not matter.
    together = pattern.apply(codes.masked_fill(~mask[..., None], 99), mask)
    for item, length, tokens in zip(codes, mask.sum(1).tolist(), together, strict=True):
        alone = pattern.apply(item[None, :length])[0]
        assert len(alone) == len(pattern.layout(length).frames)
        assert torch.equal(tokens[: len(alone)], alone)
        assert bool((tokens[len(alone) :] == pattern.vocabulary.pad).all())


@WIDE
@given(CASES)
def test_tokens_are_in_the_range_of_their_slot(case):
    pattern, codes, mask = ragged_codes(case)
    vocabulary = pattern.vocabulary
    for item, length in zip(codes, mask.sum(1).tolist(), strict=True):
        tokens, layout = pattern.apply(item[None, :length])[0], pattern.layout(length)
        used = set()
        for token, frame, k in zip(
            tokens.flatten().tolist(),
            layout.frames.flatten().tolist(),
            layout.codebooks.flatten().tolist(),
            strict=True,
        ):
            if k < 0:
                assert token == vocabulary.pad
                continue
            low, high = vocabulary.ranges[k]
            assert low <= token < high
            assert (token == vocabulary.stop) == (k == 0 and frame == length)
            used.add((frame, k))
        every = {(t, k) for t in range(length) for k in range(pattern.num_codebooks)}
        assert used == every | {(length, 0)}


@WIDE
@given(CASES, st.integers(0, 6))
def test_an_early_stop_changes_nothing_before_it(case, shorter):
    # Generation plans for the longest sequence and plans anew when an item stops.
    pattern, codes, _ = ragged_codes(case)
    long = codes.shape[1]
    short = min(shorter, long)
    tokens = pattern.apply(codes[:1, :short])[0]
    ((step, stream),) = (tokens == pattern.vocabulary.stop).nonzero().tolist()
    assert pattern.stop_frame(step, stream) == short
    one, other = pattern.layout(short), pattern.layout(long)
    assert torch.equal(one.codebooks[:step], other.codebooks[:step])
    assert torch.equal(one.frames[:step], other.frames[:step])
    # In its step the streams that are drawn before it.
    assert torch.equal(one.frames[step, :stream], other.frames[step, :stream])
    assert one.frames[step, stream] == other.frames[step, stream] == short


def test_orders_are_the_published_ones():
    codes = torch.tensor([[[0, 1, 2], [3, 4, 5]]])
    sizes = (6, 6, 6)
    offset = torch.tensor(CodeVocabulary(sizes).offsets)
    assert offset.tolist() == [0, 7, 13]
    stop, pad = 6, 19

    flat = make_pattern("flatten", sizes).apply(codes)[0, :, 0].tolist()
    assert flat == [0, 8, 15, 3, 11, 18, stop]
    coarse = make_pattern("coarse_first", sizes).apply(codes)[0, :, 0].tolist()
    assert coarse == [0, 3, stop, 8, 15, 11, 18]
    parallel = make_pattern("parallel", sizes).apply(codes)[0].tolist()
    assert parallel == [[0, 8, 15], [3, 11, 18], [stop, pad, pad]]
    delay = make_pattern("delay", sizes).apply(codes)[0].tolist()
    assert delay == [[0, pad, pad], [3, 8, pad], [stop, 11, 15], [pad, pad, 18]]
    grouped = make_pattern("grouped", sizes).apply(codes)[0].tolist()
    assert grouped == [[0, 8, 15, 3, 11, 18], [stop, pad, pad, pad, pad, pad]]
    three = make_pattern("grouped", sizes, 3).apply(codes)[0].tolist()
    assert three == [[0, 8, 15, 3, 11, 18, stop, pad, pad]]


def test_draws_are_every_stream_once():
    for name in NAMES:
        pattern = make_pattern(name, (4, 4, 4))
        streams = torch.arange(pattern.num_streams)
        assert torch.equal(torch.cat([streams[draw] for draw in pattern.draws]), streams)
    # A code of a group may depend on those before it.
    assert len(make_pattern("grouped", (4, 4, 4), 4).draws) == 12


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_are_no_sequence_are_refused(name):
    pattern = make_pattern(name, (4, 4, 4))
    vocabulary = pattern.vocabulary
    tokens = pattern.apply(torch.tensor([[[0, 1, 3], [2, 3, 3], [1, 0, 0]]]))
    where, stream = (tokens[0] == vocabulary.stop).nonzero()[0]

    without = tokens.clone()
    without[0, where, stream] = 0
    with pytest.raises(REFUSED, match=r"\b0\b"):
        pattern.revert(without)
    swapped = tokens.clone()
    swapped[0, 0, 0] = vocabulary.ranges[1][0]
    with pytest.raises(REFUSED, match=r"\[\[0, 0, 0\]\]"):
        pattern.revert(swapped)
    longer = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)
    with pytest.raises(REFUSED, match="tail"):
        pattern.revert(longer)
    if name in ("delay", "coarse_first"):
        with pytest.raises(REFUSED, match="1 steps"):
            pattern.revert(tokens[:, :-1])


def test_a_stop_inside_a_frame_is_refused():
    pattern = make_pattern("flatten", (4, 4))
    tokens = pattern.apply(torch.tensor([[[0, 1], [2, 3]]]))[:, :2]
    tokens[0, 1] = pattern.vocabulary.stop
    with pytest.raises(REFUSED, match="step 1"):
        pattern.revert(tokens)


def test_wrong_codes_are_refused():
    pattern = make_pattern("delay", (4, 2))
    with pytest.raises(REFUSED, match=r"\b2\b.* codebook 1\b"):
        pattern.apply(torch.tensor([[[3, 2]]]))
    with pytest.raises(REFUSED, match=r"\[1, 3, 3\].*\[B, T, 2\]"):
        pattern.apply(torch.zeros(1, 3, 3, dtype=torch.int64))
    holes = torch.tensor([[True, False, True]])
    with pytest.raises(REFUSED, match="mask"):
        pattern.apply(torch.zeros(1, 3, 2, dtype=torch.int64), holes)
    with pytest.raises(REFUSED, match="'zigzag'"):
        make_pattern("zigzag", (4, 4))
    with pytest.raises(REFUSED, match=r"\(4, 0\)"):
        make_pattern("delay", (4, 0))
    with pytest.raises(REFUSED, match="coarse=3"):
        CoarseFirstPattern((4, 4), 3)
    for frames in (0, 65):
        with pytest.raises(REFUSED, match=f"group_frames={frames}"):
            make_pattern("grouped", (4, 4), frames)
