"""The examples and the README do what they say, with the bundled model."""

import re
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models import tone

from tokenizer import load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.cli import main as latok
from tokenizer.evaluation.demo import EXAMPLE
from tokenizer.evaluation.metrics import mel_distance, quality
from tokenizer.model.loading import bundled_names

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_clip_is_what_its_script_makes(tmp_path):
    script = ROOT / "examples" / "make_example_clip.py"
    out = tmp_path / "example.flac"
    subprocess.run([sys.executable, str(script), str(out)], check=True, timeout=120)
    made, rate = soundfile.read(out, dtype="int16")
    shipped, shipped_rate = soundfile.read(EXAMPLE, dtype="int16")
    assert rate == shipped_rate == 44_100
    assert made.shape == shipped.shape
    # Libraries of mathematical functions differ in their last bits.
    assert np.abs(made.astype(int) - shipped).max() <= 1


@pytest.mark.parametrize(
    ("name", "bitrates"),
    [("base-44khz", (3_000, 10_000, 16_000, 24_000)), ("compact-44khz", (1_000, 2_000, 4_000))],
)
def test_bundled_models_get_better_with_every_rate(name, bitrates):
    tokenizer = load_tokenizer(name)
    clip, rate = soundfile.read(EXAMPLE, dtype="float32", frames=3 * 44_100)
    found = []
    for bitrate in bitrates:
        row = tokenizer.encode_codes(clip, sampling_rate=rate, bitrate=bitrate)
        assert row["codes"].shape[1] == round(bitrate / tokenizer.frame_rate / 10)
        found.append(quality(tokenizer.decode_codes(row), clip[None], rate))
    latents = tokenizer.encode_latents(clip, sampling_rate=rate)
    found.append(quality(tokenizer.decode_latents(latents), clip[None], rate))
    for worse, better in pairwise(found):
        assert better["si_sdr"] > worse["si_sdr"]
        assert better["mel"] < worse["mel"]
    assert found[-1]["si_sdr"] > found[0]["si_sdr"] + 2


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_models_are_small_and_half_precision(name):
    folder = ROOT / "tokenizer" / "pretrained" / name
    assert sum(p.stat().st_size for p in folder.iterdir()) < 40e6


@pytest.mark.parametrize("name", bundled_names())
def test_a_code_file_is_decoded_by_the_bundled_model_that_made_it(name, tmp_path):
    codes, back = str(tmp_path / "a.ltk"), str(tmp_path / "a.wav")
    assert latok(["encode", str(EXAMPLE), codes, "--model", name, "--codebooks", "2"]) == 0
    assert latok(["decode", codes, back]) == 0
    assert soundfile.info(back).frames == soundfile.info(EXAMPLE).frames


def test_bands_of_the_mel_distance_add_up_to_it():
    errors = runpy.run_path(str(ROOT / "examples" / "mel_by_band.py"))["errors"]
    target, estimate = (
        tone(1.0, rate=44_100, channels=2),
        tone(1.0, rate=44_100, channels=2, seed=1),
    )
    whole = mel_distance(torch.from_numpy(estimate), torch.from_numpy(target), 44_100)
    found = errors(estimate, target, 44_100)
    assert found[..., 0].sum() == pytest.approx(whole, rel=1e-5)
    np.testing.assert_allclose(found[..., 1].sum(1), 1.0)


def test_levels_that_are_halved_are_six_decibels_off():
    level_errors = runpy.run_path(str(ROOT / "examples" / "mel_by_band.py"))["level_errors"]
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 22_050)).astype(np.float32)
    found = level_errors(noise / 2, noise, 44_100)
    np.testing.assert_allclose(found[:7], 20 * np.log10(2), atol=1e-3)


def test_the_ideal_coder_is_at_the_bound_and_better_with_every_rate():
    ideal = runpy.run_path(str(ROOT / "examples" / "ideal_coder.py"))
    # n Gaussians of one variance at R bits in all: variance 2 ** (-2 R / n).
    level = ideal["water_level"](torch.full((1, 8), 3.0), 16.0)
    assert float(level) == pytest.approx(3 * 2**-4, rel=1e-4)
    # What is below the water costs nothing.
    level = ideal["water_level"](torch.tensor([[3.0, 1e-6]]), 2.0)
    assert float(level) == pytest.approx(3 * 2**-4, rel=1e-4)
    audio = torch.from_numpy(tone(1.0, rate=44_100))
    for how in ({"by_frame": True, "companding": 0.3}, {"by_frame": False, "companding": 0.0}):
        coded = [ideal["code"](audio[0], kbit, seed=0, **how)[None] for kbit in (1, 8, 64)]
        found = [mel_distance(x, audio, 44_100) for x in coded]
        assert found == sorted(found, reverse=True)
        assert quality(coded[-1].numpy(), audio.numpy(), 44_100)["si_sdr"] > 20


@pytest.mark.slow
def test_python_in_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks
    clip, rate = soundfile.read(EXAMPLE, dtype="float32", frames=44_100)
    (tmp_path / "my_audio").mkdir()
    for name in ("speech.wav", "my_audio/a.wav", "my_audio/b.wav"):
        write_audio(tmp_path / name, clip[None], rate)
    (tmp_path / "script.py").write_text("\n".join(blocks))
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def run_example(name, *arguments, timeout=600):
    """Runs a script of ``examples/`` as people do."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_examples_lead_from_audio_to_both_decoders(tiny, tmp_path):
    tokens, lm, diffusion = (tmp_path / name for name in ("tokens", "lm", "diffusion"))
    said = run_example("tokenize_dataset.py", "--out", tokens, "--tokenizer", tiny)
    assert "16 rows at 100 frames/s" in said
    assert "decoded: (1, 16000)" in said
    small = ["--steps", 3, "--width", 32, "--tokenizer", tiny]
    run_example("train_lm_on_codes.py", tokens, "--out", lm, *small)
    run_example("train_diffusion_on_latents.py", tokens, "--out", diffusion, *small)
    out = tmp_path / "clips"
    run_example("decode_generations.py", lm, diffusion, "--out", out, "--seconds", 0.5)
    waves = {path.stem: soundfile.read(path)[0] for path in out.glob("*.wav")}
    assert sorted(waves) == ["codes", "latents", "latents-as-codes"]
    assert all(len(wave) == 4000 and np.abs(wave).max() > 0 for wave in waves.values())
    assert not np.array_equal(waves["latents"], waves["latents-as-codes"])


@pytest.mark.slow
def test_example_of_the_whole_path(tiny, tmp_path):
    options = ["--out", tmp_path, "--tokenizer", tiny, "--steps", 3, "--width", 32]
    run_example("audio_folder_to_generated_audio.py", *options, "--seconds", 0.5)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") == 4
    assert {path.name for path in (tmp_path / "clips" / "lm").glob("*.wav")} == {
        "000-noise.wav",
        "001-tones.wav",
    }


@pytest.mark.slow
def test_example_of_another_autoencoder(tmp_path):
    said = run_example("bring_your_own_autoencoder.py", "--out", tmp_path)
    assert "500 frames of 4 codes, 6.0 kbit/s" in said
    assert soundfile.info(tmp_path / "decoded.wav").frames == 32_000


@pytest.mark.slow
def test_example_of_the_trained_models(tiny, tmp_path):
    audio = tmp_path / "audio"
    for index in range(10):
        folder = audio / ("speech" if index % 2 else "music")
        folder.mkdir(parents=True, exist_ok=True)
        write_audio(folder / f"{index}.wav", tone(2.0, seed=index), 8000)
    options = ["--tokenizer", tiny, "--size", "tiny", "--lm-steps", 3, "--diffusion-steps", 3]
    options += [
        "--clips",
        1,
        "--seconds",
        0.5,
        "--evaluation-clips",
        4,
        "--num-workers",
        0,
        "--held-out",
        0.4,
    ]
    run_example("train_bundled_generators.py", audio, "--out", tmp_path / "out", *options)
    assert "Evaluation: diffusion" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "export" / "diffusion" / "model_index.json").exists()


@pytest.mark.slow
def test_notebook_runs(tiny, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "walkthrough.ipynb", as_version=4)
    settings = notebook.cells[1].source
    for name, value in (
        ("OUT", f"Path({str(tmp_path)!r})"),
        ("TOKENIZER", repr(str(tiny))),
        ("STEPS, WIDTH, SECONDS", "3, 32, 0.5"),
    ):
        settings, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", settings, flags=re.M)
        assert count == 1
    notebook.cells[1].source = settings
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}
    ).execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert sum("text/html" in output["data"] for output in shown) == 5
