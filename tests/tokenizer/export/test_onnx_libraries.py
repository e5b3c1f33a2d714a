"""Other libraries' autoencoders as ONNX graphs: refused in one line, or at the right level."""

import numpy as np
import pytest
from libraries import make_library_model
from models import tone

from tokenizer import LatentTokenizer
from tokenizer.autoencoders.adapter import adapter
from tokenizer.cli import main
from tokenizer.export.onnx_runner import OnnxTokenizer

pytestmark = pytest.mark.slow


def make(name: str) -> LatentTokenizer:
    kind = name.removesuffix("-48").removesuffix("-odd")
    return LatentTokenizer.from_autoencoder(adapter(kind)(make_library_model(name)))


def test_what_torch_cannot_export_is_one_line(tmp_path, capsys):
    make("encodec").save_pretrained(tmp_path / "encodec")
    command = ["export-onnx", str(tmp_path / "encodec"), "--out", str(tmp_path / "onnx")]
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.rpartition("latok: ")[2]
    assert error.count("\n") == 1
    assert "encoder" in error
    assert "'encodec'" in error
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
