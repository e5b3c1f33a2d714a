import json
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from models import CODEBOOKS, RATE, tone
from prepared_data import LABELS, write_prepared

from generative import LatentDiffusionPipeline, load_run
from generative.cli import main
from tokenizer import __version__, write_audio

LOOP = ["--steps", 2, "--batch-size", 4, "--crop-frames", 16, "--warmup-steps", 1]
LOOP += ["--num-workers", 0, "--sample-every", 0, "--held-out", 0.2]
SIZES = ["--width", 32, "--depth", 1, "--heads", 2]


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _new_process():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    tokenizer.save_pretrained(root / "tokenizer")
    write_prepared(root / "data", tokenizer)
    write_audio(root / "start.wav", tone(0.2), RATE)
    shared = [root / "data", "--tokenizer", root / "tokenizer", *LOOP, *SIZES]
    assert call("train-lm", *shared, "--out", root / "lm", "--codebooks", 2) == 0
    assert call("train-diffusion", *shared, "--out", root / "diffusion") == 0
    return root


@pytest.mark.parametrize("family", ["lm", "diffusion"])
def test_sample(folder, tmp_path, capsys, family):
    command = ["sample", folder / family, "--seconds", 0.4, "--steps", 3]
    out = tmp_path / "a"
    assert call(*command, "--label", "all", "--count", 2, "--out", out, "--seed", 3) == 0
    assert "4 clips of 0.4 s" in capsys.readouterr().out
    content = json.loads((out / "samples.json").read_text())
    assert [entry["label"] for entry in content["samples"]] == [
        name for name in LABELS for _ in range(2)
    ]
    waves = []
    for entry in content["samples"]:
        wave, rate = soundfile.read(out / entry["audio"])
        assert (len(wave), rate) == (round(0.4 * RATE), RATE)
        assert (out / entry["picture"]).exists()
        waves.append(wave)
    assert not np.array_equal(waves[0], waves[1])
    # The same seed, the same files; another one, others.
    for name, seed in (("b", 3), ("c", 4)):
        options = ["--label", "all", "--count", 2, "--no-pictures", "--seed", seed]
        assert call(*command, *options, "--out", tmp_path / name) == 0
    first = [(tmp_path / name / "000-birds.wav").read_bytes() for name in "abc"]
    assert first[0] == first[1] != first[2]
    # Continued.
    prompt = ["--prompt", folder / "start.wav", "--out", tmp_path / "d", "--label", "rain"]
    assert call(*command, *prompt) == 0
    assert soundfile.info(tmp_path / "d" / "000-rain.wav").frames == round(0.4 * RATE)


def test_training_says_which_splits_it_takes(folder, tmp_path, tokenizer, capsys):
    for split in ("train.a", "train.b", "dev.a"):
        write_prepared(tmp_path / "data", tokenizer, split=split)
    wrong = [tmp_path / "data", "--out", tmp_path / "out", *LOOP, "--heads", 7]
    assert call("train-lm", *wrong, "--tokenizer", folder / "tokenizer") == 2
    assert capsys.readouterr().out == "Training on train.a, train.b; validating on dev.a.\n"


def test_a_time_in_nanoseconds_is_a_seed(folder, tmp_path):
    command = ["sample", folder / "lm", "--seconds", 0.1, "--no-pictures"]
    for name, seed in (("a", 1_793_000_000_000_000_000), ("b", 1_793_000_000_000_000_001)):
        assert call(*command, "--seed", seed, "--out", tmp_path / name) == 0
    first = [(tmp_path / name / "000.wav").read_bytes() for name in "ab"]
    assert first[0] != first[1]


def test_snapping_changes_what_is_heard(folder, tmp_path):
    command = ["sample", folder / "diffusion", "--seconds", 0.3, "--steps", 2, "--no-pictures"]
    assert call(*command, "--out", tmp_path / "a") == 0
    assert call(*command, "--out", tmp_path / "b", "--snap", 2) == 0
    files = [(tmp_path / name / "000.wav").read_bytes() for name in "ab"]
    assert files[0] != files[1]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("family", ["lm", "diffusion"])
def test_export_stands_alone(folder, tmp_path, family, half):
    out = tmp_path / "export"
    flags = ["--half"] if half else []
    assert call("export", folder / family, out, *flags) == 0
    original, _, _ = load_run(folder / family)
    model, tokenizer, info = load_run(out)
    assert tokenizer.num_codebooks == CODEBOOKS
    assert str(folder) not in json.dumps(info)
    assert (out / "README.md").exists()
    for name, value in original.state_dict().items():
        found = model.state_dict()[name]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, value, rtol=1e-3 if half else 0, atol=1e-3 * half)
    if family == "diffusion":
        pipe = LatentDiffusionPipeline.from_pretrained(out)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        audios = pipe("rain", seconds=0.2, num_inference_steps=2, generator=generator).audios
        assert audios.shape == (1, 1, round(0.2 * RATE))
    size = sum(f.stat().st_size for f in (out / "model").glob("*.safetensors"))
    whole = sum(f.stat().st_size for f in (folder / family / "model").glob("*.safetensors"))
    assert (size < 0.7 * whole) == half


def test_models_of_the_package_are_found_by_name(folder, tmp_path, monkeypatch, capsys):
    name = ["--tokenizer", folder / "tokenizer"]
    assert call("export", folder / "lm", tmp_path / "lm", "--no-tokenizer", *name) == 0
    assert sorted(p.name for p in (tmp_path / "lm").iterdir()) == ["README.md", "model", "run.json"]
    monkeypatch.setattr("generative.runs.loading.PRETRAINED", tmp_path)
    monkeypatch.chdir(tmp_path / "lm")
    assert call("sample", "lm", "--seconds", 0.2, "--out", tmp_path / "clips", "--no-pictures") == 0
    assert call("sample", "diffusion", "--out", tmp_path / "clips") == 2
    assert "Models of the package: lm." in capsys.readouterr().err
    # A folder of that name goes first.
    monkeypatch.chdir(tmp_path)
    assert call("sample", "lm", "--seconds", 0.2, "--out", tmp_path / "clips") == 0


def test_report_is_one_page_that_needs_nothing(folder, tmp_path):
    clips = tmp_path / "clips"
    command = ["sample", folder / "diffusion", "--seconds", 0.2, "--steps", 2, "--label", "rain"]
    assert call(*command, "--out", clips) == 0
    described = json.loads((clips / "samples.json").read_text())
    described["samples"][0]["label"] = "<script>alert(1)</script>"
    (clips / "samples.json").write_text(json.dumps(described))
    (tmp_path / "result.json").write_text('{"bits": {"model": 7.25, "static": 9.5}}')
    page = tmp_path / "out" / "report.html"
    options = ["--run", folder / "diffusion", "--evaluation", tmp_path / "result.json"]
    assert call("report", clips, *options, "--out", page, "--title", "R & B") == 0
    text = page.read_text()
    assert "R &amp; B" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;" in text
    assert text.count("data:audio/flac;base64,") == 1
    assert text.count("data:image/png;base64,") == 2
    assert "bits / model" in text
    assert "7.25" in text
    assert "http" not in text
    assert "val/loss" in text


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lm", "diffusion"])
def test_evaluate(folder, tmp_path, capsys, family):
    out = tmp_path / "new" / "result.json"
    command = ["evaluate", folder / family, folder / "data", "--json", out, "--held-out", 0.4]
    assert call(*command, "--clips", 4, "--seconds", 0.3) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert result["clips"] == {"real": 8, "generated": 4}
    assert all(found["gaussian_ratio"] > 0 for found in result["frechet"].values())
    assert ("bits" in result) == (family == "lm")
    if family == "lm":
        # Hardly trained, it cannot beat the static code by much, nor lose to the nominal rate.
        assert 0 < result["bits"]["lm"]["bits_per_code"] < 1.3 * 4
    again = tmp_path / "again.json"
    assert call(*command, "--clips", 4, "--seconds", 0.3, "--json", again) == 0
    assert again.read_text() == out.read_text()


def test_module_runs(tmp_path):
    command = [sys.executable, "-m", "generative", "sample", str(tmp_path), "--out", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"No run in {tmp_path}: there is no run.json." in done.stderr


def test_bad_input_is_one_line_and_exit_2(folder, tmp_path, capsys):
    lm, diffusion, data = folder / "lm", folder / "diffusion", folder / "data"
    (tmp_path / "empty").mkdir()
    (tmp_path / "tests" / "data").mkdir(parents=True)
    (tmp_path / "tests" / "data" / "test-00000.parquet").touch()
    out = ["--out", tmp_path / "out"]
    tokenizer = ["--tokenizer", folder / "tokenizer"]
    cases = {
        "label": (["sample", lm, "--label", "wind", *out], "wind"),
        "caption": (["sample", lm, "--caption", "a wind", *out], "text_encoder"),
        "seconds": (["sample", lm, "--seconds", 0, *out], "seconds=0"),
        "endless": (["sample", lm, "--seconds", "inf", *out], "seconds=inf"),
        "no number": (["evaluate", diffusion, data, "--seconds", "nan"], "seconds=nan"),
        "guidance": (["sample", diffusion, "--guidance", "nan", *out], "guidance_scale"),
        "temperature": (["sample", lm, "--temperature", "nan", *out], "temperature"),
        "batch size": (["sample", lm, "--batch-size", -1, *out], "batch_size=-1"),
        "device": (["sample", lm, "--device", "cuda:99", *out], "'cuda:99'"),
        "evaluated device": (["evaluate", lm, data, "--device", "hip:99"], "'hip:99'"),
        "device of the app": (["app", lm, "--device", "tpu"], "'tpu'"),
        "steps": (["sample", diffusion, "--steps", 0, *out], "steps"),
        "top p": (["sample", lm, "--top-p", 2, *out], "top_p"),
        "snap": (["sample", lm, "--snap", 2, *out], "--snap"),
        "keep": (["sample", lm, "--prompt", folder / "start.wav", "--keep", "0-1", *out], "--keep"),
        "keep of nothing": (["sample", diffusion, "--keep", "0-1", *out], "--prompt"),
        "snap many": (["sample", diffusion, "--snap", 99, "--steps", 1, *out], "99"),
        "prompt": (["sample", lm, "--prompt", tmp_path / "no.wav", *out], "no.wav"),
        "long prompt": (
            ["sample", lm, "--prompt", folder / "start.wav", "--seconds", 0.1, *out],
            "frames",
        ),
        "no data": (["train-lm", tmp_path / "empty", *out, *LOOP], "datasets_scripts prepare"),
        "no split": (["train-lm", tmp_path / "tests", *out, *LOOP], "only test"),
        "codebooks": (["train-lm", data, *out, *LOOP, *tokenizer, "--codebooks", 9], "9"),
        "pattern": (["train-lm", data, *out, *LOOP, *tokenizer, "--pattern", "zigzag"], "zigzag"),
        "heads": (["train-diffusion", data, *out, *LOOP, *tokenizer, "--heads", 7], "heads=7"),
        "other tokenizer": (["train-diffusion", data, *out, *LOOP], "--tokenizer"),
        "changed": (
            ["train-diffusion", data, "--out", diffusion, *tokenizer, *LOOP, "--width", 48],
            "another --out",
        ),
        "report": (["report", tmp_path / "empty", *out], "samples.json"),
        "export": (["export", tmp_path / "empty", tmp_path / "out"], "run.json"),
        "export onto itself": (["export", lm, lm, "--half"], "another folder"),
    }
    for name, (arguments, part) in cases.items():
        capsys.readouterr()
        assert call(*arguments) == 2, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("generative: "), name
        assert part in lines[-1], (name, lines[-1])
        assert not (tmp_path / "out").exists(), name


def test_every_option_says_what_it_does_and_its_default(capsys):
    with pytest.raises(SystemExit):
        call("--help")
    for command in re.findall(r"^    ([a-z-]+)  ", capsys.readouterr().out, re.MULTILINE):
        with pytest.raises(SystemExit):
            call(command, "--help")
        lines = capsys.readouterr().out.split("\n  -")[2:]
        options = [" ".join(line.split()) for line in lines]
        assert options
        for option in options:
            _, _, text = option.partition("  ") if "  " in option else (0, 0, option)
            assert len(text) > 15, option
            takes_value = re.match(r"-[-\w]+ [A-Z{]", option)
            needed = command.startswith("train") and option.startswith("-steps")
            if takes_value and not needed and not option.startswith("-out "):
                assert "default: " in option, option


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        call("--version")
    assert stopped.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_usage_errors_exit_2():
    for arguments in ([], ["bogus"], ["sample"], ["train-lm", "x", "--out", "y"]):
        with pytest.raises(SystemExit) as stopped:
            call(*arguments)
        assert stopped.value.code == 2
