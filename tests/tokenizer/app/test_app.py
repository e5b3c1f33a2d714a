"""What the app does, without a browser; test_app_browser.py looks at the page."""

from __future__ import annotations

import re
import sys
import types
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import soundfile
from accelerate.state import AcceleratorState
from models import RATE, generated_source, make_autoencoder, read_row, tone
from prepared_data import LABELS, write_prepared

from tokenizer import AppGenerator, LatentTokenizer, launch_app, write_audio
from tokenizer.app import coding
from tokenizer.app.coding import MAX_CHANNELS, MAX_SECONDS, code_audio, read_beginning
from tokenizer.app.generating import Wish
from tokenizer.app.page import Page, errors_shown
from tokenizer.cli import main
from tokenizer.cli.showing import named_models
from tokenizer.evaluation.evaluate import Condition, evaluate_clip
from tokenizer.training.clips import scan

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def clip(tmp_path) -> Path:
    (tmp_path / "audio").mkdir()
    write_audio(tmp_path / "audio" / "clip.wav", tone(1.0, channels=2), RATE)
    return tmp_path / "audio" / "clip.wav"


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


def test_figures_are_those_of_evaluate(tokenizer, clip, tmp_path):
    found = code_audio(tokenizer, clip, 3, tmp_path)
    (listed,) = scan(clip.parent)
    for name, condition in (
        ("continuous", Condition(None, "continuous")),
        ("coded", Condition(3, tokenizer.codes_decoder)),
    ):
        expected, _ = evaluate_clip(tokenizer, listed, condition)
        for figure, value in found.figures[name].items():
            assert value == pytest.approx(expected[figure], rel=1e-6), (name, figure)


def test_sounds_and_code_file_are_those_of_the_tokenizer(tokenizer, clip, tmp_path):
    found = code_audio(tokenizer, clip, 3, tmp_path)
    row = tokenizer.encode_codes(clip, n_codebooks=3)
    np.testing.assert_array_equal(read_row(found.code_file, tokenizer)["codes"], row["codes"])
    assert found.code_file.name == "clip.ltk"
    for shown, expected in (
        (found.original, read(clip)),
        (found.coded, tokenizer.decode_codes(row)),
        (found.continuous, tokenizer.decode_latents(tokenizer.encode_latents(clip))),
    ):
        np.testing.assert_allclose(read(shown.audio), np.clip(expected, -1, 1), atol=1e-4)
        assert shown.picture.read_bytes().startswith(b"\x89PNG")
    assert found.codes.read_bytes().startswith(b"\x89PNG")
    assert found.notes == ()


def test_long_audio_and_many_channels_are_cut(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(coding, "MAX_SECONDS", 0.5)
    write_audio(tmp_path / "six.wav", tone(0.7, channels=6), RATE)
    found = code_audio(tokenizer, tmp_path / "six.wav", 1, tmp_path)
    assert read(found.original.audio).shape == (MAX_CHANNELS, RATE // 2)
    assert found.notes == ("Only the first 0.5 seconds.", "Only the first 2 of 6 channels.")


def test_only_the_beginning_is_read():
    source = generated_source(lambda: repeat(np.zeros((1, RATE), np.float32)))
    wave, more = read_beginning(source, MAX_SECONDS)
    assert wave.shape == (1, MAX_SECONDS * RATE)
    assert more
    short = generated_source(lambda: iter([np.zeros((1, 8), np.float32)]))
    assert read_beginning(short, 1)[0].shape == (1, 8)


@pytest.mark.parametrize("wave", [np.zeros((1, 900)), np.full((1, 1), 0.5)], ids=["silence", "one"])
def test_odd_audio(tokenizer, tmp_path, wave):
    write_audio(tmp_path / "odd.wav", wave.astype(np.float32), RATE)
    found = code_audio(tokenizer, tmp_path / "odd.wav", 4, tmp_path)
    assert read(found.coded.audio).shape == wave.shape
    assert all(np.isfinite(list(found.figures[name].values())).all() for name in found.figures)


def test_page_keeps_the_files_of_the_last_call_only(tokenizer, clip, tmp_path):
    root = tmp_path / "files"
    root.mkdir()
    page = Page({"tiny": tokenizer}, (), root)
    first = page.code(str(clip), "tiny", 4)
    second = page.code(str(clip), "tiny", 1)
    assert not first.code_file.exists()
    assert second.code_file.exists()
    assert read_row(second.code_file, tokenizer)["codes"].shape[1] == 1


def test_rates_of_a_model(tokenizer, tmp_path):
    page = Page({"tiny": tokenizer}, (), tmp_path)
    rates = page.rates("tiny")
    assert (rates["minimum"], rates["maximum"], rates["value"]) == (1, 4, 4)
    assert rates["info"] == "0.4 kbit/s and channel for the first, 1.6 for all"


def test_models_must_be_fitted(tmp_path):
    with pytest.raises(ValueError, match="tokenizer"):
        Page({}, (), tmp_path)
    with pytest.raises(ValueError, match=r"\bx .*`latok fit`"):
        Page({"x": LatentTokenizer.from_autoencoder(make_autoencoder())}, (), tmp_path)


def test_wishes_reach_the_generator(tokenizer, clip, tmp_path):
    wishes: list[Wish] = []

    def generate(wish):
        wishes.append(wish)
        return tone(0.2), RATE

    page = Page({"tiny": tokenizer}, [AppGenerator("run", generate)], tmp_path)
    shown = page.generate("run", "rain", "  ", str(clip), 2, 1.5, 7)
    assert read(shown.audio).shape == (1, 1600)
    page.generate("run", "(none)", "a dog ", None, 1, 1, None)
    assert wishes == [Wish(2.0, "rain", None, clip, 1.5, 7), Wish(1.0, None, "a dog", None, 1.0, 0)]


class FakeError(Exception):
    """As ``gradio.Error`` is called. The tests in a browser see the true one."""

    def __init__(self, message: str, **options: object) -> None:
        super().__init__(message)
        self.options = options


class FakeBlocks:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def launch(self, **options: object) -> None:
        assert options["share"] is False
        raise self.error


class FakeGradio:
    Error = FakeError
    themes = types.SimpleNamespace(Default=dict)


def test_errors_are_messages_for_the_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", FakeGradio)
    path = "/tmp/gradio/0123/a <b>.wav"
    with pytest.raises(FakeError) as caught, errors_shown(path):
        raise ValueError(f"Cannot read {path}\nas audio.")
    assert str(caught.value) == "Cannot read a &lt;b&gt;.wav as audio."
    assert caught.value.options == {"duration": None, "print_exception": False}
    with pytest.raises(KeyError), errors_shown(path):
        raise KeyError("a mistake in the code stays one")


def test_a_port_that_is_taken(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", FakeGradio)
    blocks = FakeBlocks(OSError("Cannot find empty port in range: 80-80."))
    monkeypatch.setattr("tokenizer.app.serving.build_page", lambda page: blocks)  # noqa: ARG005
    with pytest.raises(OSError, match=r"\b80 .*127\.0\.0\.1"):
        launch_app({"tiny": tokenizer}, port=80)
    blocks.error = ValueError("another")
    with pytest.raises(ValueError, match="another"):
        launch_app({"tiny": tokenizer}, port=80)


def test_without_gradio_it_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'pip install "latent-tokenizer\[app\]"'):
        launch_app({"tiny": tokenizer})


def test_gradio_is_imported_only_when_a_page_is_made():
    for path in (ROOT / "tokenizer").rglob("*.py"):
        assert not re.search(r"^(import|from) gradio", path.read_text(), flags=re.M), path


def test_names_of_models():
    assert named_models([]) == [("bundled", None)]
    assert named_models(["a=x/y", "runs/3/model"]) == [
        ("a", "x/y"),
        ("runs/3/model", "runs/3/model"),
    ]
    with pytest.raises(ValueError, match=r"a=x, a=y.*--model"):
        named_models(["a=x", "a=y"])


def test_bad_models_are_one_line(tmp_path, capsys):
    assert main(["app", "--model", str(tmp_path / "missing")]) == 2
    assert "No such checkpoint folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_run_generates(tokenizer, tmp_path):
    from generative.cli import main as generative
    from generative.runs.app import app_parts

    AcceleratorState._reset_state(reset_partial_state=True)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_prepared(tmp_path / "data", tokenizer)
    options = "--steps 1 --batch-size 2 --crop-frames 16 --num-workers 0 --sample-every 0"
    options += " --held-out 0.2 --width 24 --depth 1 --heads 2"
    for command, out in (("train-lm", "lm"), ("train-diffusion", "diffusion")):
        where = [tmp_path / "data", "--tokenizer", tmp_path / "tokenizer", "--out", tmp_path / out]
        assert generative([command, *map(str, where), *options.split()]) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
    models, generators = app_parts([tmp_path / "lm", tmp_path / "diffusion"])
    assert [model.fingerprint for model in models.values()] == [tokenizer.fingerprint]
    for generator in generators:
        assert generator.labels == LABELS
        assert not generator.takes_captions
        one, again, other = (
            generator.generate(Wish(0.3, "rain", seed=seed))[0] for seed in (1, 1, 2)
        )
        assert one.shape == (1, round(0.3 * RATE))
        np.testing.assert_array_equal(one, again)
        assert not np.array_equal(one, other)
        with pytest.raises(ValueError, match="label"):
            generator.generate(Wish(0.3, "snow"))
    write_audio(tmp_path / "start.wav", tone(0.2), RATE)
    wave, rate = generators[0].generate(Wish(0.4, prompt=tmp_path / "start.wav"))
    assert (wave.shape[-1], rate) == (round(0.4 * RATE), RATE)
    assert [g.name for g in generators] == [str(tmp_path / "lm"), str(tmp_path / "diffusion")]
