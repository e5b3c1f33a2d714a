"""The generative models that come with the package."""

import json

import numpy as np
import pytest
import soundfile

from generative import generate, load_run, make_request
from generative.cli import main
from generative.cli.options import BUNDLED
from generative.runs.app import app_parts
from generative.runs.loading import PRETRAINED, bundled_models
from tokenizer.model.loading import bundled_names

LABELS = ("music", "sound", "speech")
MAX_BYTES = 15_000_000


def test_the_commands_know_them_all():
    assert list(BUNDLED) == bundled_models()


@pytest.mark.parametrize("name", BUNDLED)
def test_they_are_small_and_name_a_bundled_tokenizer(name):
    folder = PRETRAINED / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    info = json.loads((folder / "run.json").read_text())
    assert info["tokenizer"] in bundled_names()
    assert tuple(info["labels"]) == LABELS


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_every_class_is_sound_of_its_own(name):
    model, tokenizer, info = load_run(name)
    request = make_request(
        tokenizer, 1.0, labels=LABELS, n_codebooks=info.get("n_codebooks"), guidance_scale=2.0
    )
    clips = [clip.audio for clip in generate(model, tokenizer, request, seed=0)]
    again = [clip.audio for clip in generate(model, tokenizer, request, seed=0)]
    for clip, same in zip(clips, again, strict=True):
        assert clip.shape == (1, tokenizer.sampling_rate)
        assert np.array_equal(clip, same)
        # Heard, but not clipped all the time.
        assert 1e-3 < np.sqrt(np.mean(clip**2)) < 0.7
        # Neither silence nor a click: most tenths of a second hold sound.
        tenths = np.sqrt(np.mean(clip[0].reshape(10, -1) ** 2, axis=1))
        assert (tenths > 1e-4).mean() > 0.5
    for a in range(3):
        for b in range(a):
            assert not np.allclose(clips[a], clips[b], atol=1e-3)


@pytest.mark.slow
def test_sample_needs_no_run(tmp_path):
    command = ["sample", "--label", "music", "--seconds", "0.5", "--no-pictures"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    wave, rate = soundfile.read(tmp_path / "000-music.wav")
    assert len(wave) == rate // 2


@pytest.mark.slow
def test_the_app_offers_both():
    models, generators = app_parts(BUNDLED)
    assert [generator.name for generator in generators] == list(BUNDLED)
    assert all(generator.labels == LABELS for generator in generators)
    # Both decode with the same tokenizer.
    assert len(models) == 1
