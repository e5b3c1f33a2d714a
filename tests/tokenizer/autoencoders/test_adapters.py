import copy
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from libraries import CASES, AutoencoderOobleck, make_library_model
from safetensors.torch import load_file, save_file
from transformers import DacConfig, DacModel

from tokenizer.autoencoders import build_autoencoder
from tokenizer.autoencoders.dac import DacAutoencoder
from tokenizer.autoencoders.encodec import EncodecAutoencoder
from tokenizer.autoencoders.oobleck import OobleckAutoencoder
from tokenizer.autoencoders.pretrained import load_autoencoder
from tokenizer.autoencoders.strided import receptive_field
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.tiling import decode_tiles, encode_tiles

STRIDED = [name for name in CASES if not name.startswith("encodec")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("libraries")
    for name in CASES:
        make_library_model(name).save_pretrained(root / name)
    return root


def load_library_model(folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return CASES[folder.name][0].from_pretrained(folder).eval()


def library_forward(model, x):
    """The library's own modules, without its quantizer and its splitting into chunks."""
    if isinstance(model, AutoencoderOobleck):
        return model.encode(x).latent_dist.mode(), model(x).sample
    z = model.encoder(x)
    return z, model.decoder(z)


def signal(model, length: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.num_channels, length, generator=generator)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_library_without_its_quantizer(folders, name):
    model = load_autoencoder(folders / name)
    library = load_library_model(folders / name)
    hop = model.hop_length
    x = signal(model, 40 * hop)
    # Decoders with odd strides fall short; the frame that makes up for it is the library's own
    # answer to a hop of silence.
    frames = model.num_frames(40 * hop)
    assert frames == (41 if name.endswith("odd") else 40)
    z, audio = library_forward(library, torch.nn.functional.pad(x, (0, (frames - 40) * hop)))
    assert relative(model.encoder(x), z) < 1e-6
    assert relative(model.decoder(model.encoder(x)), audio) < 1e-6
    assert audio.std() > 0.01  # a signal came through


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
def test_every_length_up_to_three_hops_is_covered(folders, name):
    model = load_autoencoder(folders / name)
    for length in range(1, 3 * model.hop_length + 1):
        z = model.encoder(signal(model, length))
        frames = model.num_frames(length)
        assert z.shape == (1, model.latent_dim, frames)
        audio = model.decoder(z)
        assert audio.shape == (1, model.num_channels, model.num_samples(frames))
        assert audio.shape[-1] >= length
        assert frames == 1 or model.num_samples(frames - 1) < length  # no frame too many


@torch.inference_mode()
@pytest.mark.parametrize("name", ["encodec", "encodec-48"])
def test_encodec_pads_as_its_library_does_for_every_length(folders, name):
    model = load_autoencoder(folders / name)
    library = load_library_model(folders / name)
    for length in range(1, 3 * model.hop_length + 1):
        x = signal(model, length)
        z, audio = library_forward(library, x)
        torch.testing.assert_close(model.encoder(x), z)
        torch.testing.assert_close(model.decoder(z), audio)


def test_encodec_keeps_all_frames_of_long_signals(folders):
    model = load_autoencoder(folders / "encodec").to("meta")  # shapes without the work
    layers = model.encoder.network.layers
    recurrent = [i for i, layer in enumerate(layers) if hasattr(layer, "lstm")]
    layers[recurrent[0]] = torch.nn.Identity()  # even there it takes a step a frame
    length = 2**24 + 1  # in float32 the same as 2**24
    z = model.encoder(torch.empty(1, 1, length, device="meta"))
    assert z.shape[-1] == model.num_frames(length) == 2796203


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
def test_batch_equals_single(folders, name):
    model = load_autoencoder(folders / name)
    x = signal(model, 133, batch=3)
    z = model.encoder(x)
    audio = model.decoder(z)
    for i in range(3):
        assert relative(model.encoder(x[i : i + 1]), z[i : i + 1]) < 1e-5
        assert relative(model.decoder(z[i : i + 1]), audio[i : i + 1]) < 1e-5


@pytest.mark.parametrize("name", STRIDED)
def test_receptive_fields_are_exact_and_centred_on_the_frame(folders, name):
    model = load_autoencoder(folders / name).double()
    hop, frame = model.hop_length, 60

    x = signal(model, 120 * hop).double().requires_grad_()
    model.encoder(x)[0, :, frame].square().sum().backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()[:, 0] - frame * hop
    first, last = receptive_field(model.encoder.network, 0, 0)
    assert (int(seen.min()), int(seen.max())) == (first, last)
    assert abs(first + last - (hop - 1)) < (hop if name.endswith("odd") else 1)
    context = model.encoder.context
    assert first >= -context * hop
    assert last < (context + 1) * hop

    z = model.encoder(x).detach().requires_grad_()
    model.decoder(z)[..., frame * hop : (frame + 1) * hop].square().sum().backward()
    seen = z.grad.abs().sum((0, 1)).nonzero()[:, 0] - frame
    assert max(-int(seen.min()), int(seen.max())) == model.decoder.context
    assert abs(int(seen.min()) + int(seen.max())) <= 1


@torch.inference_mode()
@pytest.mark.parametrize("name", STRIDED)
def test_tiles_equal_the_whole_and_need_all_the_context(folders, name, monkeypatch):
    monkeypatch.setattr("tokenizer.model.tiling.MAX_FRAMES", 24)
    model = load_autoencoder(folders / name).double()
    hop = model.hop_length
    for length in (1, 24 * hop, 24 * hop + 1, 48 * hop - 1, 100 * hop + 3):
        x = signal(model, length).double()
        z = model.encoder(x)
        assert relative(torch.cat(list(encode_tiles(model, x.split(50, -1))), -1), z) < 1e-13
        audio = model.decoder(z)
        tiled = torch.cat(list(decode_tiles(model, model.decoder, z.split(7, -1), 0.0)), -1)
        assert relative(tiled, audio) < 1e-13
    model.encoder.context -= 1
    assert relative(torch.cat(list(encode_tiles(model, [x])), -1), z) > 1e-9
    model.decoder.context -= 1
    tiled = torch.cat(list(decode_tiles(model, model.decoder, [z], 0.0)), -1)
    assert relative(tiled, audio) > 1e-9


@torch.inference_mode()
def test_tiles_equal_the_whole_in_float32(folders, monkeypatch):
    monkeypatch.setattr("tokenizer.model.tiling.MAX_FRAMES", 24)
    model = load_autoencoder(folders / "oobleck")
    x = signal(model, 100 * model.hop_length + 3)
    z = model.encoder(x)
    assert relative(torch.cat(list(encode_tiles(model, [x])), -1), z) < 1e-4
    tiled = torch.cat(list(decode_tiles(model, model.decoder, [z], 0.0)), -1)
    assert relative(tiled, model.decoder(z)) < 1e-4


def test_published_sizes():
    def on_meta(model_class, **options):
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return model_class(**options)

    dac = DacAutoencoder(on_meta(DacModel, config=DacConfig(sampling_rate=44100)))
    # The library returns 512 of 637 samples.
    assert (dac.hop_length, dac.num_frames(637), dac.num_samples(2)) == (512, 2, 1024)
    assert (dac.latent_dim, dac.encoder.context, dac.decoder.context) == (1024, 8, 10)
    ratios = DacConfig(sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8])
    dac = DacAutoencoder(on_meta(DacModel, config=ratios))
    assert (dac.hop_length, dac.num_samples(1), dac.num_frames(320)) == (320, 312, 2)
    oobleck = OobleckAutoencoder(on_meta(AutoencoderOobleck))
    assert (oobleck.hop_length, oobleck.latent_dim, oobleck.num_channels) == (2048, 64, 2)
    assert (oobleck.encoder.context, oobleck.decoder.context) == (8, 10)


def test_properties(folders):
    for name in CASES:
        model = load_autoencoder(folders / name)
        assert model.kind == name.split("-")[0]
        assert model.sampling_rate == 8000
        assert model.num_channels == (2 if name in ("oobleck", "encodec-48") else 1)
        assert model.normalize == (name == "encodec-48")
        assert (model.encoder.context is None) == (model.decoder.context is None)
        assert (model.encoder.context is None) == (model.kind == "encodec")
        assert not any("quantizer" in key or "codebook" in key for key in model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_config_and_weights_make_the_same_model(folders, name):
    model = load_autoencoder(folders / name)
    config = json.loads(json.dumps({"kind": model.kind, **model.to_config()}))
    assert json.loads(json.dumps(model.to_config())) == model.to_config()
    again = build_autoencoder(config)
    again.load_state_dict(model.state_dict())
    assert again.to_config() == model.to_config()
    x = signal(model, 77)
    with torch.inference_mode():
        z = model.encoder(x)
        assert torch.equal(again.eval().encoder(x), z)
        assert torch.equal(again.decoder(z), model.decoder(z))
    del config["sampling_rate"]
    config["bogus"] = 1
    with pytest.raises(ValueError, match=r"\['sampling_rate'\].*\['bogus'\]"):
        build_autoencoder(config)


@pytest.mark.parametrize("name", CASES)
def test_decoder_can_be_copied_and_finetuned(folders, name):
    model = load_autoencoder(folders / name)
    decoder = copy.deepcopy(model.decoder).train()
    z = model.encoder(signal(model, 200)).detach()
    audio = decoder(z, torch.zeros(1))
    assert torch.equal(audio.detach(), model.decoder(z).detach())
    audio.square().mean().backward()
    gradients = [p.grad for p in decoder.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert all(bool(g.any()) for g in gradients if g.ndim > 2)
    torch.optim.SGD(decoder.parameters(), 0.1).step()
    assert not torch.equal(decoder(z), audio)
    assert torch.equal(model.decoder(z), audio)  # the original stays as it was


@torch.inference_mode()
@pytest.mark.parametrize("name", CASES)
def test_becomes_a_tokenizer_checkpoint_of_its_own(folders, name, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(load_autoencoder(folders / name))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = LatentTokenizer.from_pretrained(tmp_path / "saved")
    assert again.state_dict().keys() == tokenizer.state_dict().keys()
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    x = signal(tokenizer.autoencoder, 500)
    out = tokenizer.encode(x)
    assert torch.equal(again.encode(x).latents, out.latents)
    audio = tokenizer.decode(out.latents, decoder="continuous", gain=out.gain)
    assert torch.equal(again.decode(out.latents, decoder="continuous", gain=out.gain), audio)
    assert again.fingerprint == tokenizer.fingerprint
    if tokenizer.autoencoder.normalize:
        louder = tokenizer.encode(3 * x)
        torch.testing.assert_close(louder.latents, out.latents, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(louder.gain, 3 * out.gain, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_encodec_normalizes_one_chunk_of_equal_channels_as_its_library_does(folders):
    model = load_autoencoder(folders / "encodec-48")
    library = load_library_model(folders / "encodec-48")
    x = 0.2 * signal(model, 8000)[:, :1].expand(1, 2, 8000)
    _, scales, _ = library.encode(x, return_dict=False)
    gain = LatentTokenizer.from_autoencoder(model).encode(x).gain
    torch.testing.assert_close(scales[0].flatten(), gain, rtol=1e-3, atol=0)


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
    with pytest.raises(FileNotFoundError, match=r"vae/config\.json"):
        load_autoencoder(tmp_path)
    path = tmp_path / "config.json"
    for text, message in (
        ("{", "is not JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "found no kind. Supported are .*DacModel"),
        ('{"model_type": "mimi"}', r"found \{'model_type': 'mimi'\}. Supported are .*DacModel"),
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
    with pytest.raises(ValueError, match=r"encoder_hidden_size=6 .*decoder_input_channels=4"):
        OobleckAutoencoder.from_config({**config, "encoder_hidden_size": 6})


def test_without_diffusers_the_extra_is_named(folders, monkeypatch):
    config = load_autoencoder(folders / "oobleck").to_config()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "latent-tokenizer\[diffusers\]"'):
        load_autoencoder(folders / "oobleck")
    with pytest.raises(ImportError, match=r"latent-tokenizer\[diffusers\]"):
        OobleckAutoencoder.from_config(config)
