"""Quantizers that users write: the example, and what the registry says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models import DIM, RATE, make_autoencoder, tone

from tokenizer import (
    LatentTokenizer,
    Quantizer,
    TensorSource,
    decode_file,
    encode_file,
    load_tokenizer,
    register_quantizer,
)
from tokenizer.audio import write_audio
from tokenizer.evaluation.evaluate import default_conditions, evaluate
from tokenizer.quantizers import QUANTIZERS
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.clips import scan
from tokenizer.training.config import CropTrainingConfig
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder

EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_quantizer.py"


@pytest.fixture(autouse=True)
def _no_lasting_registration():
    before = dict(QUANTIZERS)
    yield
    QUANTIZERS.clear()
    QUANTIZERS.update(before)


def load_module(path):
    spec = importlib.util.spec_from_file_location("custom_quantizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    return load_module(EXAMPLE)


@pytest.fixture
def fitted(example):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    latents = tokenizer.encode(torch.from_numpy(tone(4.0))[None]).latents[0].T.clone()
    quantizer = example.SignQuantizer(DIM, 3)
    quantizer.fit(TensorSource(latents), generator=torch.Generator().manual_seed(0))
    return tokenizer.set_quantizer(quantizer)


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_the_example_runs_from_class_to_decoded_audio(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    command = [sys.executable, EXAMPLE, tmp_path / "out", tmp_path / "model"]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    audio, rate = soundfile.read(tmp_path / "out" / "decoded.wav")
    assert rate == RATE
    assert np.abs(audio).max() > 0.01
    config = (tmp_path / "out" / "tokenizer" / "config.json").read_text()
    assert '"signs"' in config


def test_the_class_in_the_docs_is_the_examples(fitted, tmp_path):
    text = (EXAMPLE.parents[1] / "docs" / "quantizers.md").read_text()
    (tmp_path / "docs.py").write_text(re.search(r"```python\n(.*?)```", text, flags=re.S).group(1))
    shown = load_module(tmp_path / "docs.py").SignQuantizer(DIM, 3)
    x = torch.randn(300, DIM, generator=torch.Generator().manual_seed(1))
    quantizers = [
        quantizer.fit(TensorSource(x), generator=torch.Generator().manual_seed(0))
        for quantizer in (shown, fitted.quantizer)
    ]
    codes, expected = (quantizer.encode(x) for quantizer in quantizers)
    assert torch.equal(codes, expected)
    assert torch.equal(quantizers[0].decode(codes), quantizers[1].decode(codes))


def test_it_keeps_the_contract(fitted):
    quantizer = fitted.quantizer
    x = torch.randn(900, DIM, generator=torch.Generator().manual_seed(1))
    codes = quantizer.encode(x)
    for start, stop in ((0, 1), (0, 7), (3, 300), (899, 900)):
        assert torch.equal(quantizer.encode(x[start:stop]), codes[start:stop])
    assert torch.equal(quantizer.encode(x, 2), codes[:, :2])
    assert (np.diff(quantizer.noise_levels.numpy()) < 0).all()
    assert quantizer.noise_levels[-1] < 0.7


def test_it_works_everywhere(fitted, tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(3):
        write_audio(clips / f"{i}.wav", tone(1.0, seed=i), RATE)
    row = fitted.encode_codes(clips / "0.wav")
    encode_file(fitted, clips / "0.wav", tmp_path / "a.ltk")
    decode_file(fitted, tmp_path / "a.ltk", tmp_path / "a.wav")
    np.testing.assert_allclose(
        soundfile.read(tmp_path / "a.wav")[0], fitted.decode_codes(row)[0], atol=1e-3
    )
    finetune_decoder(
        fitted,
        scan(clips),
        tmp_path / "run",
        loop=CropTrainingConfig(steps=2, batch_size=2, crop_seconds=0.3, num_workers=0),
        losses=ReconstructionConfig(),
        finetune=FinetuneConfig(),
        augmentation=Augmentation(),
        num_held_out=1,
        progress=False,
    )
    fitted.save_pretrained(tmp_path / "model")
    loaded = load_tokenizer(tmp_path / "model")
    assert loaded.fingerprint == fitted.fingerprint
    again = loaded.encode_codes(clips / "0.wav")
    np.testing.assert_array_equal(again["codes"], row["codes"])
    result = evaluate(loaded, scan(clips)[:1], default_conditions(loaded, [1600]))
    assert list(result["conditions"]) == ["continuous", "2 codebooks"]


def test_a_checkpoint_of_an_unknown_class_says_what_to_do(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    del QUANTIZERS["signs"]
    with pytest.raises(ValueError, match="'signs'"):
        load_tokenizer(tmp_path)


def test_kinds_are_unique(example):
    class Other(example.SignQuantizer):
        pass

    with pytest.raises(ValueError, match=r"'signs'.*custom_quantizer\.SignQuantizer"):
        register_quantizer(Other)
    Other.kind = "rvq"
    with pytest.raises(ValueError, match=r"'rvq'.*tokenizer\.quantizers"):
        register_quantizer(Other)
    Other.kind = "other"
    assert register_quantizer(Other) is Other
    # Defined anew, as when a cell of a notebook is run again.
    assert register_quantizer(example.SignQuantizer) is example.SignQuantizer

    class Nameless(Quantizer):
        fit = encode = decode = example.SignQuantizer.fit

    with pytest.raises(ValueError, match="Nameless"):
        register_quantizer(Nameless)


def test_a_class_that_forgets_an_argument_is_told(example):
    class Forgetful(example.SignQuantizer):
        def __init__(self, dim: int, num_codebooks: int, colour: str = "red") -> None:
            super().__init__(dim, num_codebooks)
            self.color = colour

    with pytest.raises(TypeError, match=r"Forgetful .*colour"):
        Forgetful(4, 2).to_config()


def test_codebooks_that_files_cannot_hold_are_refused(example):
    class Wide(example.SignQuantizer):
        def __init__(self, dim: int) -> None:
            Quantizer.__init__(self, dim, [2**17])

    with pytest.raises(ValueError, match="131072"):
        Wide(4)
