"""Checkpoints of other libraries: where they are found, and what is refused in which words."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from libraries import CASES, load_library_model, saved
from models import make_tokenizer
from safetensors.torch import load_file, save_file
from transformers import DacConfig, DacModel

from tokenizer import load_tokenizer
from tokenizer.autoencoders.adapter import (
    READERS,
    DacAutoencoder,
    EncodecAutoencoder,
    OobleckAutoencoder,
)
from tokenizer.autoencoders.pretrained import DECLINED, SUBFOLDERS, load_autoencoder
from tokenizer.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("libraries")
    for name in ("dac", "encodec", "oobleck"):
        saved(root, name)
    return root


@pytest.mark.filterwarnings("ignore:.*is deprecated and ignored in `hf_hub_download`")
def test_loads_a_pipeline_and_hub_repositories_from_the_cache(folders, tmp_path):
    library = load_library_model(folders / "oobleck")
    library.save_pretrained(tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert isinstance(load_autoencoder(tmp_path / "pipeline"), OobleckAutoencoder)

    def cache(repository: str, source: Path) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        folder = tmp_path / "cache" / f"models--someone--{repository}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots").mkdir()
        (folder / "snapshots" / commit).symlink_to(source, target_is_directory=True)

    options = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    cache("codec", folders / "encodec")
    cache("pipeline", tmp_path / "pipeline")
    codec = load_autoencoder("someone/codec", **options)
    assert isinstance(codec, EncodecAutoencoder)
    expected = load_autoencoder(folders / "encodec").state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in codec.state_dict().items())
    assert isinstance(load_autoencoder("someone/pipeline", **options), OobleckAutoencoder)
    with pytest.raises(FileNotFoundError, match="someone/absent"):
        load_autoencoder("someone/absent", **options)


def test_half_precision_checkpoints_become_float32(folders, tmp_path):
    for name in ("dac", "oobleck"):
        load_library_model(folders / name).half().save_pretrained(tmp_path / name)
        model = load_autoencoder(tmp_path / name)
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_refuses_what_it_cannot_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_autoencoder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_autoencoder(tmp_path)
    path = tmp_path / "config.json"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "found no kind. Supported are .*DacModel"),
        ('{"model_type": "bert"}', r"found \{'model_type': 'bert'\}. Supported are .*DacModel"),
        ('{"_class_name": "AutoencoderKL"}', "AutoencoderKL.*AutoencoderOobleck"),
        ('{"model_type": "latent_tokenizer"}', "load_tokenizer"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_autoencoder(tmp_path)
    path.write_text('{"model_type": "dac"}')
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("dac", "model.safetensors", "decoder.conv1.weight"),
        ("encodec", "model.safetensors", "encoder.layers.0.conv.bias"),
        ("oobleck", "diffusion_pytorch_model.safetensors", "encoder.conv2.weight_g"),
    ],
)
def test_refuses_checkpoints_that_lack_weights(folders, tmp_path, name, file, key):
    weights = load_file(folders / name / file)
    del weights[key]
    save_file(weights, tmp_path / file, metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folders / name / "config.json").read_bytes())
    with pytest.raises(ValueError, match=key):
        load_autoencoder(tmp_path)


def test_refuses_networks_that_do_not_fit(folders):
    small = {"encoder_hidden_size": 2, "decoder_hidden_size": 8, "n_codebooks": 1}
    with pytest.raises(ValueError, match=r"2 samples .*2 frames"):
        DacAutoencoder(DacModel(DacConfig(downsampling_ratios=[2, 1], **small)))
    config = load_autoencoder(folders / "oobleck").to_config()
    with pytest.raises(ValueError, match=r"encoder_hidden_size=6 .* 4 "):
        OobleckAutoencoder.from_config({**config, "encoder_hidden_size": 6})


def test_without_diffusers_the_extra_is_named(folders, monkeypatch):
    config = load_autoencoder(folders / "oobleck").to_config()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "latent-tokenizer\[diffusers\]"'):
        load_autoencoder(folders / "oobleck")
    with pytest.raises(ImportError, match=r"latent-tokenizer\[diffusers\]"):
        OobleckAutoencoder.from_config(config)


def test_weights_of_another_class_or_size_are_refused_in_a_line(folders, tmp_path):
    def mixed(config: Path, weights: Path, name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((config / "config.json").read_bytes())
        file = next(weights.glob("*.safetensors"))
        (folder / next(config.glob("*.safetensors")).name).write_bytes(file.read_bytes())
        return folder

    wider = DacModel(DacConfig(**{**CASES["dac"].options, "encoder_hidden_size": 4}))
    wider.save_pretrained(tmp_path / "wider")
    for config, weights, message in (
        (folders / "dac", folders / "encodec", "lacks weights"),
        (folders / "oobleck", folders / "dac", "Oobleck"),
        (folders / "dac", tmp_path / "wider", "DacModel"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            load_autoencoder(mixed(config, weights, f"{config.name}-{weights.name}"))
        assert "\n" not in str(refused.value)
    path = folders / "dac" / "config.json"
    (tmp_path / "odd").mkdir()
    odd = json.loads(path.read_text()) | {"downsampling_ratios": "many"}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(odd))
    with pytest.raises(ValueError, match="DacModel"):
        load_autoencoder(tmp_path / "odd")


def test_shards_and_subfolders(folders, tmp_path):
    library = load_library_model(folders / "oobleck")
    expected = load_autoencoder(folders / "oobleck").state_dict()
    places = (*SUBFOLDERS, "somewhere")
    for place in places:
        library.save_pretrained(tmp_path / place / place, max_shard_size="10KB")
        assert len(list((tmp_path / place / place).glob("*.safetensors"))) > 1
        found = load_autoencoder(tmp_path / place, subfolder=place)
        assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    for place in SUBFOLDERS:
        assert isinstance(load_autoencoder(tmp_path / place), OobleckAutoencoder)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_autoencoder(tmp_path / "somewhere")
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        load_autoencoder(tmp_path / "vae", subfolder="elsewhere")


@pytest.mark.parametrize("name", DECLINED)
def test_declined_classes_say_why(tmp_path, name):
    field = "_class_name" if name[0].isupper() else "model_type"
    (tmp_path / "config.json").write_text(json.dumps({field: name}))
    with pytest.raises(ValueError, match=name) as refused:
        load_autoencoder(tmp_path)
    assert DECLINED[name] in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_library_without_the_class_is_told_which_version_has_it(folders, monkeypatch):
    later = replace(READERS["dac"], model="DacModel9", since="9.0")
    monkeypatch.setattr(DacAutoencoder, "reader", later)
    with pytest.raises(
        ImportError, match=r'has no DacModel9: pip install --upgrade "transformers>='
    ):
        load_autoencoder(folders / "dac")


def test_an_autoencoder_is_no_tokenizer_yet(folders, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"AutoencoderOobleck.*latok wrap.*latok fit"):
        load_tokenizer(folders / "oobleck")
    assert main(["info", str(folders / "dac")]) == 2
    said = capsys.readouterr().err
    assert "latok wrap" in said
    assert said.count("\n") == 1
    make_tokenizer().save_pretrained(tmp_path / "T")
    load_tokenizer(tmp_path / "T")
