import sys

import numpy as np
import pytest
from models import tone

from tokenizer.evaluation.perceptual import METRICS, PerceptualMetrics

RATE = 44_100


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A voiced, syllabic sound: what the speech metrics take for utterances."""
    rng = np.random.default_rng(0)
    t = np.arange(2 * RATE) / RATE
    harmonics = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 25))
    syllables = np.clip(np.sin(2 * np.pi * 3 * t), 0, None) ** 0.5
    wave = 0.2 * harmonics * syllables + 0.001 * rng.normal(size=len(t))
    return wave[None].astype(np.float32)


def damaged(audio: np.ndarray, level: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=audio.shape).astype(np.float32)
    return audio + level * np.float32(audio.std()) * noise


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_scores_lower(name, speech):
    measure = PerceptualMetrics([name])
    scores = [measure(damaged(speech, x), speech, RATE, "x")[name] for x in (0.0, 0.03, 1.0)]
    assert scores[0] > scores[1] > scores[2]


def test_channels_are_averaged(speech):
    measure = PerceptualMetrics(["zimtohrli"])
    noisy = damaged(speech, 0.5)
    parts = [measure(x, speech, RATE, "x")["zimtohrli"] for x in (noisy, speech)]
    both = measure(np.concatenate([noisy, speech]), np.concatenate([speech] * 2), RATE, "x")
    assert both["zimtohrli"] == pytest.approx(np.mean(parts))


def test_speech_metrics_are_for_speech(speech):
    measure = PerceptualMetrics(["zimtohrli", "stoi"], speech_clips="*/speech/*")
    assert set(measure(speech, speech, RATE, "clips/speech/a.wav")) == {"zimtohrli", "stoi"}
    assert set(measure(speech, speech, RATE, "clips/music/a.wav")) == {"zimtohrli"}


@pytest.mark.parametrize("name", ["pesq", "stoi"])
def test_what_has_no_utterance_is_left_out(name):
    measure = PerceptualMetrics([name])
    silence = np.zeros((1, RATE // 5), dtype=np.float32)
    assert measure(silence, silence, RATE, "x") == {}
    click = silence.copy()
    click[0, 100] = 0.5
    assert measure(click, click, RATE, "x") == {}


def test_refusals():
    with pytest.raises(ValueError, match="'mos'"):
        PerceptualMetrics(["mos"])
    with pytest.raises(ValueError, match="shape"):
        PerceptualMetrics([])(tone(1.0), tone(2.0), 8000, "x")


@pytest.mark.parametrize(("metric", "package"), [("visqol", "visqol"), ("stoi", "pystoi")])
def test_a_missing_library_is_named(metric, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*latent-tokenizer\[perceptual\]"):
        PerceptualMetrics([metric])
