"""Exported graphs, and their runner, beside the tokenizer that they come from."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import DIM, HOP, RATE, make_stereo_autoencoder, make_tokenizer, tone

from tokenizer.audio import write_audio
from tokenizer.export import onnx_runner
from tokenizer.export.onnx_export import export_onnx
from tokenizer.export.onnx_runner import OnnxTokenizer
from tokenizer.quantizers.product import ProductQuantizer
from tokenizer.training.clips import scan
from tokenizer.training.detail import add_detail
from tokenizer.training.noise import add_decoder_noise

pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory) -> Path:
    return export_onnx(tokenizer, tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture(scope="module")
def runner(exported) -> OnnxTokenizer:
    return OnnxTokenizer(exported, num_threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "channels"),
    [(1, 1), (HOP - 1, 1), (HOP, 2), (3 * HOP + 1, 1), (8000, 2), (RATE * 12 + 5, 1)],
)
def test_codes_and_audio_are_those_of_torch(tokenizer, runner, samples, channels):
    wave = tone(samples / RATE, channels=channels, seed=samples % 7)
    row, ours = runner.encode_codes(wave, sampling_rate=RATE), None
    ours = tokenizer.encode_codes(wave, sampling_rate=RATE)
    assert {k: np.shape(v) for k, v in row.items()} == {k: np.shape(v) for k, v in ours.items()}
    assert row["codes"].dtype == ours["codes"].dtype
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_allclose(row["gain"], ours["gain"], rtol=1e-6)
    for name in (None, "continuous"):
        audio = runner.decode_codes(row, decoder=name)
        expected = tokenizer.decode_codes(ours, decoder=name)
        assert audio.shape == wave.shape
        np.testing.assert_allclose(audio, expected, atol=1e-5)
    latents = runner.encode_latents(wave, gain=0.05)
    expected = tokenizer.encode_latents(wave, sampling_rate=RATE, gain=0.05)
    np.testing.assert_allclose(latents["latents"], expected["latents"], atol=1e-4)
    np.testing.assert_allclose(
        runner.decode_latents(latents), tokenizer.decode_latents(expected), atol=1e-5
    )


@pytest.mark.slow
def test_fewer_codebooks(tokenizer, runner):
    wave = tone(0.5)
    row = runner.encode_codes(wave, n_codebooks=2)
    ours = tokenizer.encode_codes(wave, sampling_rate=RATE, n_codebooks=2)
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_allclose(runner.decode_codes(row), tokenizer.decode_codes(ours), atol=1e-5)


@pytest.mark.slow
def test_no_torch_is_needed(tokenizer, exported, tmp_path):
    wave = tone(0.7)
    np.save(tmp_path / "in.npy", wave)
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'tokenizer'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from latok_onnx import OnnxTokenizer\n"
        "tok = OnnxTokenizer(sys.argv[1], num_threads=1)\n"
        "row = tok.encode_codes(np.load(sys.argv[2] + '/in.npy'))\n"
        "np.save(sys.argv[2] + '/codes.npy', row['codes'])\n"
        "np.save(sys.argv[2] + '/out.npy', tok.decode_codes(row))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(exported), str(tmp_path)], cwd=exported, check=True
    )
    ours = tokenizer.encode_codes(wave, sampling_rate=RATE)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), ours["codes"])
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), tokenizer.decode_codes(ours), atol=1e-5
    )
    # Nor through the package, whose names are imported when they are used.
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from tokenizer.onnx_runner import OnnxTokenizer; OnnxTokenizer(sys.argv[1])\n"
    )
    root = Path(onnx_runner.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, str(exported)], cwd=root, check=True)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="latok export-onnx"):
        OnnxTokenizer(tmp_path)
    (tmp_path / "onnx.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"\b99\b"):
        OnnxTokenizer(tmp_path)
    other = make_tokenizer()
    quantizer = ProductQuantizer(DIM, 2, 4)
    quantizer.fitted.fill_(True)
    other.set_quantizer(quantizer)
    with pytest.raises(ValueError, match="'pq'"):
        export_onnx(other, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_bad_input_to_the_runner(runner):
    for call, message in (
        (lambda: runner.encode_codes(np.zeros(5, np.float32), sampling_rate=1), "resample"),
        (lambda: runner.encode_codes(np.zeros(0, np.float32)), "finite"),
        (lambda: runner.encode_codes(np.zeros(5, np.int16)), "int16"),
        (lambda: runner.encode_codes(np.ones(5, np.float32), n_codebooks=9), "n_codebooks=9"),
        (lambda: runner.encode_codes(np.ones(5, np.float32), gain=0.0), "positive"),
        (lambda: runner.decode_codes({"codes": np.full((3, 2), 99)}), "codebooks"),
        (lambda: runner.decode_latents({"latents": np.zeros((3, DIM))}, decoder="x"), "'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_detail_a_beam_and_noise_are_those_of_torch(tmp_path):
    write_audio(tmp_path / "audio.wav", tone(1.5), RATE)
    plain = make_tokenizer(beam_width=4, standardization="channel")
    plain = add_detail(plain, scan(tmp_path), 3, seed=0)
    noisy = add_decoder_noise(plain)
    noisy.finetuned_decoder.open_noise(0)
    runner = OnnxTokenizer(export_onnx(noisy, tmp_path / "model"), num_threads=1)
    # Longer than a tile, so that noise depends on where a tile begins.
    wave = tone(12)
    row, ours = runner.encode_codes(wave), noisy.encode_codes(wave, sampling_rate=RATE)
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    decoded = noisy.decode_codes(ours)
    np.testing.assert_allclose(runner.decode_codes(row), decoded, atol=1e-5)
    assert np.abs(decoded - plain.decode_codes(ours))[:, -RATE:].max() > 1e-3
    latents = runner.encode_latents(wave)
    assert latents["latents"].shape[1] == DIM + 3
    expected = noisy.decode_latents(noisy.encode_latents(wave, sampling_rate=RATE))
    np.testing.assert_allclose(runner.decode_latents(latents), expected, atol=1e-5)


@pytest.mark.slow
def test_a_stereo_model_is_that_of_torch(tmp_path):
    tokenizer = make_tokenizer(make_stereo_autoencoder())
    runner = OnnxTokenizer(export_onnx(tokenizer, tmp_path / "model"), num_threads=1)
    for channels in (1, 2, 3):
        wave = tone(0.8, channels=channels)
        row, ours = runner.encode_codes(wave), tokenizer.encode_codes(wave, sampling_rate=RATE)
        np.testing.assert_array_equal(row["codes"], ours["codes"])
        np.testing.assert_allclose(row["gain"], ours["gain"], rtol=1e-6)
        audio = runner.decode_codes(row)
        assert audio.shape == wave.shape
        np.testing.assert_allclose(audio, tokenizer.decode_codes(ours), atol=1e-5)
