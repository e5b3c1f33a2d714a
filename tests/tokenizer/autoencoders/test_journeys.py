"""From a library's folder to code files, datasets and generated audio, for every class."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from libraries import CASES, cases, saved
from models import tone

from datasets_scripts import cli as datasets_cli
from generative import cli as generative_cli
from tokenizer import cli as latok_cli, load_tokenizer, write_audio
from tokenizer.evaluation.comparison import read_comparison

ONE_EACH = [name for name in CASES if name not in ("dac-odd", "oobleck-odd", "encodec-48")]
SMALL = ["--steps", 2, "--batch-size", 2, "--num-workers", 0, "--warmup-steps", 1]
MODEL = [*SMALL, "--crop-frames", 16, "--held-out", 0.4, "--sample-every", 0]
MODEL += ["--width", 24, "--depth", 1, "--heads", 2]


def call(program, *words: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    return program.main([str(word) for word in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("journeys")


def make_audio(folder: Path, case) -> Path:
    folder.mkdir()
    for i in range(4):
        wave = tone(0.4, case.sampling_rate, channels=case.num_channels, seed=i)
        write_audio(folder / f"{i}.wav", wave, case.sampling_rate)
    return folder


def first_row(folder: Path) -> dict:
    file = str(next(folder.rglob("*.parquet")))
    row = datasets.Dataset.from_parquet(file).with_format("numpy")[0]
    return row if isinstance(row, dict) else dict(row)


def streamed(tok, wave, **options) -> np.ndarray:
    gain = tok.encode_latents(wave, sampling_rate=tok.sampling_rate)["gain"]
    shared = {"gain": gain, "num_channels": len(wave), "latents": True}
    stream = tok.stream_encoder(**shared, **options)
    parts = [stream.push(part) for part in np.array_split(wave, 7, axis=-1)]
    return np.concatenate([*parts, stream.finish()], axis=1)


@pytest.mark.parametrize("name", cases(ONE_EACH))
def test_latents_to_a_diffusion_model(root, tmp_path, name, capsys):
    case, source = CASES[name], saved(root, name)
    audio, tok = make_audio(tmp_path / "audio", case), tmp_path / "T"
    assert call(latok_cli, "wrap", source, audio, "--out", tok) == 0
    tokenizer = load_tokenizer(tok)
    assert bool((tokenizer.latents_std != 1).all())
    assert call(latok_cli, "evaluate", audio, "--model", tok) == 0
    assert call(latok_cli, "report", audio, "--model", tok, "--out", tmp_path / "page") == 0
    (table,) = json.loads((tmp_path / "page" / "report.json").read_text())["tables"]
    assert [column["label"] for column in table["columns"]] == ["original", "continuous"]
    capsys.readouterr()
    assert call(latok_cli, "encode", audio / "0.wav", tmp_path / "0.ltk", "--model", tok) == 2
    assert "latok fit" in capsys.readouterr().err.splitlines()[-1]

    wave, rate = soundfile.read(audio / "0.wav", dtype="float32", always_2d=True)
    whole = tokenizer.encode_latents(wave.T, sampling_rate=rate)
    stream = streamed(tokenizer, wave.T)
    assert np.array_equal(stream.reshape(whole["latents"].shape), whole["latents"])
    assert np.isinf(tokenizer.latency) == any(case.whole)

    data = tmp_path / "data"
    prepare = ["prepare", "audiofolder", audio, "--out", data, "--tokenizer", tok, "--latents"]
    assert call(datasets_cli, *prepare) == 0
    row = first_row(data)
    assert tokenizer.decode_latents(row).shape == wave.T.shape
    shared = [data, "--tokenizer", tok, *MODEL]
    assert call(generative_cli, "train-diffusion", *shared, "--out", tmp_path / "run") == 0
    sample = ["sample", tmp_path / "run", "--seconds", 0.1, "--steps", 2, "--out", tmp_path / "s"]
    assert call(generative_cli, *sample) == 0
    (entry,) = json.loads((tmp_path / "s" / "samples.json").read_text())["samples"]
    info = soundfile.info(tmp_path / "s" / entry["audio"])
    assert (info.frames, info.samplerate) == (round(0.1 * case.sampling_rate), case.sampling_rate)
    assert info.channels == case.num_channels


@pytest.mark.parametrize("name", cases(ONE_EACH))
def test_codes_to_a_language_model(root, tmp_path, name):
    case, source = CASES[name], saved(root, name)
    audio = make_audio(tmp_path / "audio", case)
    fit = ["fit", source, audio, "--out", tmp_path / "1", "--codebooks", 2, "--codebook-size", 4]
    assert call(latok_cli, *fit) == 0
    finetune = ["finetune", tmp_path / "1" / "model", audio, "--out", tmp_path / "2", *SMALL]
    assert call(latok_cli, *finetune, "--crop-seconds", 0.3, "--held-out", 1) == 0
    tok = tmp_path / "2" / "model"
    tokenizer = load_tokenizer(tok)
    first = load_tokenizer(tmp_path / "1" / "model")
    assert tokenizer.codes_fingerprint == first.codes_fingerprint
    assert tokenizer.codes_decoder == "finetuned"

    compare = ["compare", source, audio, audio, "--out", tmp_path / "C", "--codebook-size", 4]
    compare += ["--quantizers", "rvq", "--codebooks", 2, "--finetune", 2]
    compare += ["--crop-seconds", 0.3, *SMALL[2:], "--also", f"fitted={tok}"]
    assert call(latok_cli, *compare) == 0
    entries = read_comparison(tmp_path / "C")["entries"]
    assert [entry["name"] for entry in entries] == ["rvq", "fitted"]
    for entry in entries:
        assert sorted(rate["n_codebooks"] for rate in entry["rates"]) == [2]
        for rate in entry["rates"]:
            assert math.isfinite(rate["finetuned"]["mel"])
            assert ("si_sdr_side" in rate["finetuned"]) == (case.num_channels == 2)

    wave, rate = soundfile.read(audio / "0.wav", dtype="float32", always_2d=True)
    assert call(latok_cli, "encode", audio / "0.wav", tmp_path / "0.ltk", "--model", tok) == 0
    decode = ["decode", tmp_path / "0.ltk", tmp_path / "0.wav", "--model", tok]
    assert call(latok_cli, *decode) == 0
    back = soundfile.info(tmp_path / "0.wav")
    assert (back.frames, back.channels) == wave.shape
    batch = [wave.T, wave.T[:, :-7]]
    rows = tokenizer.encode_codes(batch, sampling_rate=rate)
    for one, codes in zip(batch, rows["codes"], strict=True):
        assert np.array_equal(tokenizer.encode_codes(one, sampling_rate=rate)["codes"], codes)
    assert [audio.shape for audio in tokenizer.decode_codes(rows)] == [x.shape for x in batch]

    data = tmp_path / "data"
    prepare = ["prepare", "audiofolder", audio, "--out", data, "--tokenizer", tok]
    assert call(datasets_cli, *prepare) == 0
    shared = [data, "--tokenizer", tok, *MODEL]
    assert call(generative_cli, "train-lm", *shared, "--out", tmp_path / "run") == 0
    sample = ["sample", tmp_path / "run", "--seconds", 0.1, "--out", tmp_path / "s"]
    assert call(generative_cli, *sample) == 0
    (entry,) = json.loads((tmp_path / "s" / "samples.json").read_text())["samples"]
    assert soundfile.info(tmp_path / "s" / entry["audio"]).channels == case.num_channels


@torch.inference_mode()
def test_wrap_keeps_what_the_checkpoint_knows(root, tmp_path, capsys):
    source = saved(root, "minimax")
    assert call(latok_cli, "wrap", source, "--out", tmp_path / "T") == 0
    assert "AUDIO" not in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "T").latents_std.tolist() == [1.0, 2.0, 0.5, 1.5]
    assert call(latok_cli, "wrap", saved(root, "dac"), "--out", tmp_path / "D") == 0
    assert "AUDIO" in capsys.readouterr().out
    assert call(latok_cli, "wrap", source, "--out", source) == 2
