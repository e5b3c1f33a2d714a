"""Other libraries' autoencoders as ONNX graphs: those of torch, or refused in one line."""

import numpy as np
import pytest
from libraries import CASES, EVERYTHING, make_library_model
from models import tone

from tokenizer import LatentTokenizer
from tokenizer.autoencoders.adapter import adapter
from tokenizer.cli import main
from tokenizer.export.onnx_export import export_onnx
from tokenizer.export.onnx_runner import OnnxTokenizer

pytestmark = pytest.mark.slow

# As the table in docs/autoencoders.md says.
REFUSED = {"encodec": "encoder", "encodec-48": "encoder"}
EXPORTED = [name for name in CASES if name not in REFUSED]


def make(name: str) -> LatentTokenizer:
    kind = name.removesuffix("-48").removesuffix("-odd")
    return LatentTokenizer.from_autoencoder(adapter(kind)(make_library_model(name)))


@pytest.mark.parametrize("name", EXPORTED if EVERYTHING else ["oobleck"])
def test_graphs_are_those_of_torch(name, tmp_path):
    tokenizer = make(name)
    runner = OnnxTokenizer(export_onnx(tokenizer, tmp_path / "onnx"), num_threads=1)
    rate, channels = tokenizer.sampling_rate, tokenizer.autoencoder.num_channels
    for samples in (1, 5 * tokenizer.hop_length + 1, 4001):
        wave = tone(samples / rate, rate, channels)
        row, ours = runner.encode_latents(wave), tokenizer.encode_latents(wave, sampling_rate=rate)
        np.testing.assert_allclose(row["gain"], ours["gain"], rtol=1e-6)
        scale = np.abs(ours["latents"]).max()
        np.testing.assert_allclose(row["latents"], ours["latents"], atol=1e-5 * scale)
        audio, expected = runner.decode_latents(ours), tokenizer.decode_latents(ours)
        assert audio.shape == wave.shape
        np.testing.assert_allclose(audio, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(not EVERYTHING, reason="LATOK_ALL=1 tries what takes torch half a minute")
@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_cannot_export_is_one_line(name, tmp_path, capsys):
    make(name).save_pretrained(tmp_path / name)
    command = ["export-onnx", str(tmp_path / name), "--out", str(tmp_path / "onnx")]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.rpartition("latok: ")[2]
    assert error.count("\n") == 1
    assert f"the {REFUSED[name]} of a" in error
    assert not (tmp_path / "onnx" / "onnx.json").exists()


@pytest.mark.parametrize(("num_channels", "peak"), [(2, None), (2, 0.95), (1, 0.95)])
def test_channels_that_are_coded_together_have_one_level(num_channels, peak):
    runner = OnnxTokenizer.__new__(OnnxTokenizer)
    runner._config = {
        "normalize": True, "num_channels": num_channels, "peak": peak, "gain_floor": 1e-5
    }  # fmt: skip
    x = tone(0.1, channels=3) * np.array([[1.0], [0.1], [0.5]], dtype=np.float32)
    groups = [x[:2], x[2:]] if num_channels == 2 else [x[:1], x[1:2], x[2:]]
    expected = []
    for group in groups:
        level = np.sqrt((group**2).mean()) if peak is None else np.abs(group).max() / peak
        expected += [level + 1e-5] * len(group)
    np.testing.assert_allclose(runner._gain(x, None), expected, rtol=1e-5)
