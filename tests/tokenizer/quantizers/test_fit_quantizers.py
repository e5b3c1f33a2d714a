"""``latok fit --quantizer``, and the benchmark of quantizers."""

import runpy
import sys

import pytest
from models import RATE, make_autoencoder, tone

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.cli import main


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("fit")
    LatentTokenizer.from_autoencoder(make_autoencoder()).save_pretrained(root / "model")
    (root / "audio").mkdir()
    for i in range(4):
        write_audio(root / "audio" / f"{i}.wav", tone(1.0, seed=i), RATE)
    return root


def fit(paths, out, *options) -> int:
    command = ["fit", paths / "model", paths / "audio", "--out", out, "--segment-seconds", 0.5]
    return main([str(o) for o in [*command, "--codebook-size", 8, *options]])


@pytest.mark.parametrize(
    ("quantizer", "options", "sizes"),
    [
        ("rvq:refinements=1", ["--codebooks", 3, "--beam-width", 2], (8, 8, 8)),
        ("opq", ["--codebooks", 2, "--iterations", 3], (8, 8)),
        ("rfsq:levels=[4,3]", ["--codebooks", 2], (12, 12)),
        ("qinco:steps=2,hidden=4,candidates=2,batch_size=8", ["--codebooks", 2], (8, 8)),
    ],
)
def test_any_quantizer_is_fitted_by_name(paths, tmp_path, capsys, quantizer, options, sizes):
    assert fit(paths, tmp_path, "--quantizer", quantizer, *options) == 0
    assert f"\n| {len(sizes)} |" in capsys.readouterr().out
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.codebook_sizes == sizes
    assert tokenizer.quantizer.kind == quantizer.split(":")[0]
    row = tokenizer.encode_codes(paths / "audio" / "0.wav")
    assert tokenizer.decode_codes(row).shape == (1, RATE)
    # What is trained by gradient descent can be resumed.
    assert (tmp_path / "quantizer.safetensors").exists() == quantizer.startswith("qinco")


def test_options_reach_the_quantizer(paths, tmp_path):
    assert fit(paths, tmp_path, "--codebooks", 2, "--beam-width", 3, "--iterations", 5) == 0
    config = load_tokenizer(tmp_path / "model").config.quantizer
    assert (config["kind"], config["beam_width"], config["iterations"]) == ("rvq", 3, 5)
    # What is not said is the quantizer's own default.
    assert (config["max_points"], config["standardization"]) == (200_000, "none")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quantizer", "magic"], "Unknown quantizer 'magic'; known: rvq"),
        (["--quantizer", "fsq", "--beam-width", 2], "fsq has no option 'beam_width'"),
        (["--quantizer", "pq", "--codebook-size", 12], "power of two"),
        (["--quantizer", "pq:iterations"], "Cannot read 'iterations'"),
    ],
)
def test_mistakes_are_told_in_a_line(paths, tmp_path, capsys, options, said):
    assert fit(paths, tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert [line[:6] for line in error.splitlines() if said in line] == ["latok:"]


def test_the_benchmark_prints_a_table(monkeypatch, capsys):
    arguments = (
        "--train 400 --test 50 --dim 8 --codebooks 2 --codebook-size 8 --quantizers rvq rfsq"
    )
    monkeypatch.setattr(sys, "argv", ["quantizers", *arguments.split(), "--libraries", "faiss-pq"])
    monkeypatch.delitem(sys.modules, "tokenizer.benchmarks.quantizers", raising=False)
    runpy.run_module("tokenizer.benchmarks.quantizers", run_name="__main__")
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[0].strip() for row in rows] == ["rvq", "rfsq", "faiss-pq (library)"]
    assert all(float(row[1]) == 6 and -20 < float(row[2]) < 0 for row in rows)
