"""Mid and side of stereo, by themselves and in the tables of `latok evaluate` and `compare`."""

import numpy as np
import pytest
import torch
from models import RATE, make_tokenizer, tone

from tokenizer import write_audio
from tokenizer.evaluation.coding import Condition
from tokenizer.evaluation.comparison.measures import HeldOut, measure_audio
from tokenizer.evaluation.evaluate import evaluate, evaluation_table
from tokenizer.evaluation.metrics import mid_and_side, quality
from tokenizer.training.clips import scan


def ratio(estimate: np.ndarray, target: np.ndarray) -> float:
    """SI-SDR in dB of one channel, in float64."""
    e, t = estimate.astype(np.float64), target.astype(np.float64)
    projected = (e @ t) / (t @ t) * t
    return 10 * np.log10((projected @ projected) / np.square(e - projected).sum())


def test_mid_and_side_are_half_the_sum_and_half_the_difference():
    target = tone(0.5, channels=2, seed=1)
    estimate = target + 0.01 * np.random.default_rng(0).normal(size=target.shape)
    values = quality(estimate.astype(np.float32), target, RATE)
    for name, sign in (("mid", 1), ("side", -1)):
        e, t = (x[0] + sign * x[1] for x in (estimate, target))
        assert values[f"si_sdr_{name}"] == pytest.approx(ratio(e, t), abs=1e-3)


def test_a_lost_side_signal_shows_in_the_side_alone():
    target = torch.from_numpy(tone(0.5, channels=2, seed=1))
    values = mid_and_side(target.mean(0, keepdim=True).expand(2, -1), target)
    assert values["si_sdr_mid"] > 100
    assert values["si_sdr_side"] < -100


def test_what_has_no_side_has_no_ratio():
    mono = torch.from_numpy(tone(0.5))
    assert mid_and_side(mono, mono) == {}
    assert set(mid_and_side(mono.expand(2, -1), mono.expand(2, -1))) == {"si_sdr_mid"}


@pytest.mark.parametrize("channels", [1, 2])
def test_the_tables_have_them_for_stereo(channels, tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0, channels=channels), RATE)
    tokenizer, clips = make_tokenizer(), scan(tmp_path)
    result = evaluate(tokenizer, clips, [Condition(None, "continuous")], progress=False)
    assert ("side dB" in evaluation_table(result)) == (channels == 2)
    figures = measure_audio(tokenizer, HeldOut.encode(tokenizer, clips), None, "continuous")[0]
    means = next(iter(result["conditions"].values()))["mean"]
    for name in ("si_sdr", "si_sdr_mid", "si_sdr_side"):
        assert figures.get(name) == pytest.approx(means.get(name), abs=0.01), name
