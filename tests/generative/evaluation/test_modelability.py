"""Comparison of tokenizers by what is generated from them."""

import json
import subprocess

import numpy as np
import pytest
import soundfile
import soxr
from models import CODEBOOKS, RATE, make_tokenizer, tone

from generative.cli import build_parser, main
from generative.evaluation.embeddings import embed_audio
from generative.evaluation.frechet import frechet_of_equal_sets
from tokenizer import load_tokenizer
from tokenizer.cli import main as latok


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Folders ``train`` and ``held`` of two classes."""
    root = tmp_path_factory.mktemp("audio")
    for split, count in (("train", 6), ("held", 4)):
        for number in range(count):
            folder = root / split / ("low", "high")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            wave = tone(1.2, seed=100 * len(split) + number)
            soundfile.write(folder / f"{number}.wav", wave.T, RATE)
    return root


def test_sets_of_the_same_kind_are_as_far_as_the_floor_and_others_farther():
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(400, 6)), rng.normal(size=(150, 6))
    other = rng.normal(size=(150, 6)) * 2 + 1
    found = frechet_of_equal_sets(real, {"same": same, "other": other}, seed=0)
    assert found["same"] == pytest.approx(found["floor"], rel=0.5)
    assert found["other"] > 5 * found["floor"]


def test_embeddings_of_audio_know_neither_its_level_nor_its_rate():
    wave, common = tone(2.0, seed=1), RATE // 2
    once = embed_audio([wave], RATE, common)
    assert np.allclose(once, embed_audio([0.01 * wave], RATE, common), atol=1e-4)
    doubled = soxr.resample(wave[0], RATE, 2 * RATE)[None]
    assert np.allclose(once, embed_audio([doubled], 2 * RATE, common), atol=0.02)
    # Silence has no level to be brought to, and is left out.
    assert np.array_equal(once, embed_audio([wave, np.zeros((1, RATE))], RATE, common))


@pytest.mark.slow
def test_latok_compare_hands_over_what_it_has_fitted(audio, tmp_path, monkeypatch):
    make_tokenizer().save_pretrained(tmp_path / "base")
    taken = []

    def run(command, check):
        taken.append(command)
        return subprocess.CompletedProcess(command, int(check))

    monkeypatch.setattr("tokenizer.cli.judging.subprocess.run", run)
    command = ["compare", tmp_path / "base", audio / "train", audio / "held", "--out"]
    command += [tmp_path / "c", "--quantizers", "rvq", "--codebooks", 2, "--codebook-size", 16]
    command += ["--generate", 0.5, "--also", f"old={tmp_path / 'base'}"]
    assert latok([str(word) for word in command]) == 0
    assert taken[0][1:3] == ["-m", "generative"]
    options = build_parser().parse_args(taken[0][3:])
    assert options.minutes == 0.5
    paths = dict(text.split("=") for text in options.tokenizer)
    assert list(paths) == ["rvq", "old"]
    counts = [load_tokenizer(path).num_codebooks for path in paths.values()]
    assert counts == [2, CODEBOOKS]


@pytest.mark.slow
def test_models_of_two_tokenizers_are_compared_and_a_second_run_trains_nothing(
    audio, tmp_path, capsys
):
    for name, width in (("one", 1), ("other", 4)):
        make_tokenizer(beam_width=width).save_pretrained(tmp_path / name)
    command = ["compare", str(audio / "train"), str(audio / "held"), "--out", str(tmp_path / "c")]
    command += ["--tokenizer", str(tmp_path / "one"), "--tokenizer", f"b={tmp_path / 'other'}"]
    command += ["--minutes", "0.001", "--bitrate", "1e6", "--width", "16", "--depth", "1"]
    command += ["--heads", "2", "--clips", "4", "--seconds", "0.5", "--crop-seconds", "0.3"]
    command += ["--solver-steps", "2", "--batch-size", "2"]
    assert main(command) == 0
    first = json.loads((tmp_path / "c" / "modelability.json").read_text())
    names = [(e["name"], e["family"]) for e in first["entries"]]
    assert names == [(n, f) for n in ("one", "b") for f in ("language model", "diffusion")]
    for entry in first["entries"]:
        assert entry["frechet"]["reconstructed"] > 0
        assert entry["gmac_per_second"] > 0
        assert (entry["codebooks"] is None) == (entry["family"] == "diffusion")
    language = first["entries"][0]
    assert language["lm_kbps"] > 0
    assert language["static_kbps"] < 2 * language["kbps"]
    steps = sorted((tmp_path / "c").rglob("log.jsonl"))
    before = [path.stat().st_mtime_ns for path in steps]
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads((tmp_path / "c" / "modelability.json").read_text()) == first
    assert [path.stat().st_mtime_ns for path in steps] == before
    assert capsys.readouterr().out.startswith("| tokenizer")
    assert main([*command[:2], str(audio / "train"), *command[3:]]) == 2  # other audio, same folder
