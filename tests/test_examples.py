"""The examples and the README do what they say, with the bundled model."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tokenizer import load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.demo import EXAMPLE
from tokenizer.metrics import quality

ROOT = Path(__file__).resolve().parents[1]


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


def test_bundled_model_gets_better_with_every_rate():
    tokenizer = load_tokenizer()
    clip, rate = soundfile.read(EXAMPLE, dtype="float32", frames=3 * 44_100)
    found = []
    for bitrate in (3_000, 10_000, 16_000, 24_000):
        row = tokenizer.encode_codes(clip, sampling_rate=rate, bitrate=bitrate)
        assert row["codes"].shape[1] == bitrate // 1000
        found.append(quality(tokenizer.decode_codes(row), clip[None], rate))
    latents = tokenizer.encode_latents(clip, sampling_rate=rate)
    found.append(quality(tokenizer.decode_latents(latents), clip[None], rate))
    for worse, better in pairwise(found):
        assert better["si_sdr"] > worse["si_sdr"]
        assert better["mel"] < worse["mel"]
    assert found[0]["si_sdr"] > 0


def test_bundled_model_is_small_and_half_precision():
    folder = ROOT / "tokenizer" / "pretrained" / "base-44khz"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 40e6


@pytest.mark.slow
def test_python_in_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert len(blocks) >= 2
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
