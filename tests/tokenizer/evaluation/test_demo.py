import numpy as np
import pytest
import soundfile
from models import RATE, generated_source, tone

from tokenizer.evaluation import demo


def test_only_the_beginning_of_a_file_is_read(tokenizer, tmp_path, monkeypatch):
    block = tone(0.3)

    def decode():
        yield from [block] * 4
        pytest.fail("More was read than is used.")

    source = generated_source(decode)
    monkeypatch.setattr(demo, "open_audio", lambda *_, **__: source)
    monkeypatch.setattr(demo, "MAX_SECONDS", 1)
    monkeypatch.setattr("tokenizer.evaluation.coding.BITRATES", (400,))
    demo.run_demo(tokenizer, "long.wav", tmp_path)
    written, _ = soundfile.read(tmp_path / "original.wav", dtype="float32", always_2d=True)
    expected = np.tile(block, 4)[:, :RATE]
    assert written.T.shape == expected.shape
    assert np.abs(written.T - expected).max() < 1e-4
