"""Multiply-adds, counted against the sizes of the matrices."""

import pytest

from generative import LatentDiffusion
from generative.evaluation.arithmetic import COUNTED_SECONDS, multiply_adds
from generative.language_model.codec_lm import CodecLM, CodecLMConfig

RATE = 50
WIDTH, DEPTH = 32, 2


def test_language_model():
    model = CodecLM(CodecLMConfig((16, 16), "parallel", width=WIDTH, depth=DEPTH, heads=2)).eval()
    layers = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim > 1)
    head = WIDTH * (17 + 16)
    # Scores and values of half of the positions: attention is causal.
    attention = 2 * WIDTH * COUNTED_SECONDS * RATE / 2 * DEPTH
    expected = RATE * (layers + head + attention)
    assert multiply_adds(model, RATE) == pytest.approx(expected, rel=0.02)


def test_a_block_of_a_diffusion_model():
    sizes = {"width": WIDTH, "heads": 2, "patch_frames": 2}
    one, two = (LatentDiffusion(8, depth=depth, **sizes).eval() for depth in (1, 2))
    counts = [sum(p.numel() for p in m.parameters() if p.ndim > 1) for m in (one, two)]
    tokens = RATE / 2
    # Scores and values of all positions.
    expected = tokens * (counts[1] - counts[0] + 2 * WIDTH * COUNTED_SECONDS * tokens)
    assert multiply_adds(two, RATE) - multiply_adds(one, RATE) == pytest.approx(expected, rel=0.03)
