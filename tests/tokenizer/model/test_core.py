"""The light tokenizer of the command line beside the model of `transformers`."""

import pickle
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from models import RATE, tone
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tokenizer import LatentTokenizer, write_audio
from tokenizer.model.core import TokenizerCore
from tokenizer.model.loading import load_core, load_tokenizer

LOADERS = pytest.mark.parametrize("load", [load_core, load_tokenizer])


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_both_give_the_same_bits(tokenizer, folder):
    core = load_core(folder)
    assert not isinstance(core, PreTrainedModel)
    assert isinstance(tokenizer, TokenizerCore)
    assert not core.training
    row = tokenizer.encode_codes(tone(1.0), sampling_rate=RATE)
    for other in (core, deepcopy(core), pickle.loads(pickle.dumps(core))):
        assert type(other) is TokenizerCore
        assert other.state_dict().keys() == tokenizer.state_dict().keys()
        for name, value in tokenizer.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
            assert other.state_dict()[name].dtype == value.dtype, name
        assert other.fingerprint == tokenizer.fingerprint
        assert other.codes_fingerprint == tokenizer.codes_fingerprint
        again = other.encode_codes(tone(1.0), sampling_rate=RATE)
        np.testing.assert_array_equal(again["codes"], row["codes"])
        np.testing.assert_array_equal(other.decode_codes(row), tokenizer.decode_codes(row))


@pytest.mark.parametrize(
    "options", [{"half": True}, {"half": torch.bfloat16}, {"max_shard_size": "20KB"}]
)
def test_both_read_half_precision_and_shards(tokenizer, tmp_path, options):
    tokenizer.save_pretrained(tmp_path, **options)
    assert "half" in options or len(list(tmp_path.glob("*.safetensors"))) > 1
    core, full = load_core(tmp_path), load_tokenizer(tmp_path)
    assert core.fingerprint == full.fingerprint
    assert {p.dtype for p in core.parameters()} == {torch.float32}


def test_both_load_and_save_without_bars(folder, capfd):
    load_core(folder)
    load_tokenizer(folder).save_pretrained(folder / "again")
    assert capfd.readouterr().err == ""


@LOADERS
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("latents_mean", lambda _: None),
        ("latents_mean", lambda x: x[:-1]),
        ("latents_mean", lambda x: x.to(torch.complex64)),
        ("latents_mean", lambda x: x.to(torch.uint8)),
        ("latents_mean", lambda x: x + 1),  # which the checksum tells
        ("extra", lambda _: torch.zeros(1)),
    ],
)
def test_both_refuse_other_weights(folder, load, name, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    changed = change(weights.get(name))
    weights = {k: v for k, v in weights.items() if k != name}
    save_file(weights if changed is None else weights | {name: changed}, path)
    with pytest.raises(ValueError, match=f"{name}|checksum"):
        load(folder)


@LOADERS
def test_both_refuse_what_is_no_checkpoint(tmp_path, load):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.slow
def test_coding_a_file_loads_neither_transformers_nor_the_compiler(folder, tmp_path):
    script = (
        "import sys; from tokenizer.cli import main\n"
        "wav, ltk, out, model = sys.argv[1:]\n"
        "assert main(['encode', wav, ltk, '--model', model]) == 0\n"
        "assert main(['decode', ltk, out, '--model', model]) == 0\n"
        "print(*{'transformers', 'scipy', 'sympy', 'torch._dynamo'} & set(sys.modules), sep=',')\n"
    )
    write_audio(tmp_path / "a.wav", tone(1.0), RATE)
    paths = [str(tmp_path / name) for name in ("a.wav", "a.ltk", "b.wav")]
    command = [sys.executable, "-c", script, *paths, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == ""


def test_isinstance_relations_hold():
    assert issubclass(LatentTokenizer, PreTrainedModel)
    assert issubclass(LatentTokenizer, TokenizerCore)
