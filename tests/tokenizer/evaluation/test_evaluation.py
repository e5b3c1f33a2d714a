import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from models import RATE, tone

from tokenizer.audio import write_audio
from tokenizer.cli import main
from tokenizer.evaluation import coding
from tokenizer.evaluation.evaluate import Condition, evaluate_clip
from tokenizer.training.clips import scan

# The package's attribute of this name is the function.
evaluation = importlib.import_module("tokenizer.evaluation.evaluate")


@pytest.fixture
def clip(tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0), RATE)
    return scan(tmp_path)[0]


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_speed_is_that_of_encoding_and_decoding_alone(tokenizer, clip, monkeypatch, kind):
    clock = SimpleNamespace(now=0.0)

    def takes(seconds, function):
        def slow(*arguments, **options):
            clock.now += seconds
            return function(*arguments, **options)

        return slow

    monkeypatch.setattr(coding, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    for verb, seconds in (("encode", 0.5), ("decode", 0.25)):
        name = f"{verb}_{kind}"
        monkeypatch.setattr(tokenizer, name, takes(seconds, getattr(tokenizer, name)))
    for module, name in ((coding, "open_audio"), (coding, "coded_size"), (evaluation, "quality")):
        monkeypatch.setattr(module, name, takes(100, getattr(module, name)))
    condition = Condition(2 if kind == "codes" else None, "continuous")
    metrics, coded = evaluate_clip(tokenizer, clip, condition)
    assert (metrics["encode_x"], metrics["decode_x"]) == (2, 4)
    assert np.isfinite(coded.audio).all()
    assert (coded.codes is None) == (kind == "latents")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    def work(*_, **__):
        pytest.fail("The work was begun.")

    for place in ("training.clips.scan", "model.loading.load_tokenizer",
                  "evaluation.comparison.read_specs"):  # fmt: skip
        monkeypatch.setattr(f"tokenizer.{place}", work)
    (tmp_path / "file").touch()
    gone = tmp_path / "gone" / "r.json"
    for arguments, reason in (
        (["evaluate", tmp_path, "--json", gone], f"make the folder {gone.parent} first"),
        (["evaluate", tmp_path, "--json", tmp_path], "it is a folder"),
        (["compare", "model", tmp_path, tmp_path, "--out", tmp_path / "file"], "name a folder"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        assert reason in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
