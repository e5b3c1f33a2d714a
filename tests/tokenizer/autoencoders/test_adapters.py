"""Every autoencoder of another library, as a tiny random model: what holds for all of them."""

import copy
import json
import warnings

import pytest
import torch
from libraries import (
    CASES,
    AutoencoderOobleck,
    cases,
    library_decode,
    library_encode,
    load_library_model,
    saved,
)
from transformers import DacConfig, DacModel

from tokenizer.autoencoders import LIBRARY_KINDS, build_autoencoder
from tokenizer.autoencoders.adapter import READERS, DacAutoencoder, OobleckAutoencoder
from tokenizer.autoencoders.convolutions import receptive_field
from tokenizer.autoencoders.pretrained import load_autoencoder
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.model.tiling import decode_tiles, encode_tiles

STRIDED = ("dac", "dac-odd", "oobleck", "oobleck-odd")
TILED = [name for name, case in CASES.items() if not all(case.whole)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("libraries")


def signal(model, length: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, model.num_channels, length, generator=generator)
    return x if model.peak is None else x / x.abs().max() * model.peak


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_every_reader_has_a_case():
    assert set(READERS) == set(LIBRARY_KINDS)
    assert {reader.model for reader in READERS.values()} == {c.model for c in CASES.values()}


@torch.inference_mode()
@pytest.mark.parametrize("name", cases())
def test_equal_to_the_library_without_its_quantizer(root, name):
    model = load_autoencoder(saved(root, name))
    library = load_library_model(saved(root, name))
    hop = model.hop_length
    x = signal(model, 40 * hop)
    # Decoders with odd strides fall short; the frame that makes up for it is the library's own
    # answer to a hop of silence.
    frames = model.num_frames(40 * hop)
    assert frames == (41 if name.endswith("odd") else 40)
    z = library_encode(library, torch.nn.functional.pad(x, (0, (frames - 40) * hop)))
    assert relative(model.encoder(x), z) < 3e-5  # Cosmos adds 1e-5 to the peak
    assert torch.equal(model.encoder(x), model.encoder(x))
    audio = library_decode(library, z)
    assert relative(model.decoder(z), audio) < 1e-6
    assert audio.std() > 0.01  # a signal came through


@torch.inference_mode()
@pytest.mark.parametrize("name", cases())
def test_every_length_up_to_three_hops_is_covered(root, name):
    model = load_autoencoder(saved(root, name))
    for length in range(1, 3 * model.hop_length + 1):
        z = model.encoder(signal(model, length))
        frames = model.num_frames(length)
        assert z.shape == (1, model.latent_dim, frames)
        audio = model.decoder(z)
        assert audio.shape == (1, model.num_channels, model.num_samples(frames))
        assert audio.shape[-1] >= length
        assert frames == 1 or model.num_samples(frames - 1) < length  # no frame too many


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("name", ["encodec", "encodec-48"])
def test_encodec_pads_as_its_library_does_for_every_length(root, name):
    model = load_autoencoder(saved(root, name))
    library = load_library_model(saved(root, name))
    for length in range(1, 3 * model.hop_length + 1):
        x = signal(model, length)
        z = library_encode(library, x)
        torch.testing.assert_close(model.encoder(x), z)
        torch.testing.assert_close(model.decoder(z), library_decode(library, z))


def test_encodec_keeps_all_frames_of_long_signals(root):
    model = load_autoencoder(saved(root, "encodec")).to("meta")  # shapes without the work
    layers = model.encoder.network.layers
    recurrent = [i for i, layer in enumerate(layers) if hasattr(layer, "lstm")]
    layers[recurrent[0]] = torch.nn.Identity()  # even there it takes a step a frame
    length = 2**24 + 1  # in float32 the same as 2**24
    z = model.encoder(torch.empty(1, 1, length, device="meta"))
    assert z.shape[-1] == model.num_frames(length) == 2796203


@torch.inference_mode()
@pytest.mark.parametrize("name", cases())
def test_batch_equals_single(root, name):
    model = load_autoencoder(saved(root, name))
    x = signal(model, 133, batch=3)
    z = model.encoder(x)
    audio = model.decoder(z)
    for i in range(3):
        assert relative(model.encoder(x[i : i + 1]), z[i : i + 1]) < 1e-5
        assert relative(model.decoder(z[i : i + 1]), audio[i : i + 1]) < 1e-5


@pytest.mark.parametrize("name", cases(STRIDED))
def test_receptive_fields_are_exact_and_centred_on_the_frame(root, name):
    model = load_autoencoder(saved(root, name)).double()
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


@pytest.mark.parametrize("name", cases())
def test_nothing_beyond_the_stated_context_has_an_influence(root, name):
    model = load_autoencoder(saved(root, name))
    hop, frame = model.hop_length, 50
    x = signal(model, 100 * hop).requires_grad_()
    model.encoder(x)[0, :, frame].square().sum().backward()
    seen = x.grad.abs().sum((0, 1)).reshape(100, hop).sum(1).nonzero()[:, 0] - frame
    z = model.encoder(x).detach().requires_grad_()
    model.decoder(z)[..., frame * hop : (frame + 1) * hop].square().sum().backward()
    heard = z.grad.abs().sum((0, 1)).nonzero()[:, 0] - frame
    assert (model.encoder.context is None, model.decoder.context is None) == CASES[name].whole
    for network, frames in ((model.encoder, seen), (model.decoder, heard)):
        if network.context is not None:
            assert -int(frames.min()) <= network.context <= 1.4 * -int(frames.min()) + 2
            after = network.context if network.lookahead is None else network.lookahead
            assert int(frames.max()) <= after <= 1.4 * int(frames.max()) + 2
        else:
            assert int(frames.min()) == -frame  # it does see the whole past


@torch.inference_mode()
@pytest.mark.parametrize("name", cases(TILED))
def test_tiles_equal_the_whole(root, name, monkeypatch):
    monkeypatch.setattr("tokenizer.model.tiling.MAX_FRAMES", 24)
    model = load_autoencoder(saved(root, name))
    hop, exact = model.hop_length, name in STRIDED
    # Rotary embeddings are float32 whatever the model is.
    model, bound = (model.double(), 1e-13) if exact else (model, 1e-4)
    for length in (1, 24 * hop, 24 * hop + 1, 48 * hop - 1, 100 * hop + 3):
        x = signal(model, length)
        x = x.double() if exact else x
        z = model.encoder(x)
        tiled = torch.cat(list(encode_tiles(model, x.split(50, -1))), -1)
        assert relative(tiled, z) < bound
        audio = model.decoder(z)
        tiled = torch.cat(list(decode_tiles(model, model.decoder, z.split(7, -1), 0.0)), -1)
        assert relative(tiled, audio) < bound
    if exact:
        model.encoder.context -= 1
        assert relative(torch.cat(list(encode_tiles(model, [x])), -1), z) > 1e-9
        model.decoder.context -= 1
        tiled = torch.cat(list(decode_tiles(model, model.decoder, [z], 0.0)), -1)
        assert relative(tiled, audio) > 1e-9


@torch.inference_mode()
def test_tiles_equal_the_whole_in_float32(root, monkeypatch):
    monkeypatch.setattr("tokenizer.model.tiling.MAX_FRAMES", 24)
    model = load_autoencoder(saved(root, "oobleck"))
    x = signal(model, 100 * model.hop_length + 3)
    z = model.encoder(x)
    assert relative(torch.cat(list(encode_tiles(model, [x])), -1), z) < 1e-4
    tiled = torch.cat(list(decode_tiles(model, model.decoder, [z], 0.0)), -1)
    assert relative(tiled, model.decoder(z)) < 1e-4


def on_meta(model_class, **options):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return model_class(**options)


def test_published_sizes():
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


@pytest.mark.parametrize("name", cases())
def test_properties(root, name):
    model, case = load_autoencoder(saved(root, name)), CASES[name]
    assert READERS[model.kind].model == case.model
    assert model.sampling_rate == case.sampling_rate
    assert model.num_channels == case.num_channels
    assert model.normalize == case.normalize
    unused = ("quantizer", "codebook", "logs_proj")
    assert not any(word in key for key in model.state_dict() for word in unused)


@torch.inference_mode()
@pytest.mark.parametrize("name", cases())
def test_config_and_weights_make_the_same_model(root, name):
    model = load_autoencoder(saved(root, name))
    config = json.loads(json.dumps({"kind": model.kind, **model.to_config()}))
    assert json.loads(json.dumps(model.to_config())) == model.to_config()
    again = build_autoencoder(config)
    again.load_state_dict(model.state_dict())
    assert again.to_config() == model.to_config()
    x = signal(model, 77)
    z = model.encoder(x)
    assert torch.equal(again.eval().encoder(x), z)
    assert torch.equal(again.decoder(z), model.decoder(z))
    with pytest.raises(ValueError, match="'bogus'"):
        build_autoencoder({**config, "bogus": 1})
    lost = next(iter(model.to_config()))
    del config[lost]
    with pytest.raises(ValueError, match=rf"\b{lost}\b"):
        build_autoencoder(config)


@pytest.mark.parametrize("name", cases())
def test_decoder_can_be_copied_and_finetuned(root, name):
    model = load_autoencoder(saved(root, name))
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
@pytest.mark.parametrize("name", cases())
def test_becomes_a_tokenizer_checkpoint_of_its_own(root, name, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(load_autoencoder(saved(root, name)))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = LatentTokenizer.from_pretrained(tmp_path / "saved")
    assert again.state_dict().keys() == tokenizer.state_dict().keys()
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert not list(dict(again.named_buffers()).keys() - again.state_dict().keys())
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
    # Channels that are coded jointly keep their balance on every way in.
    uneven = x * torch.linspace(1, 0.1, x.shape[1])[:, None]
    row = tokenizer.encode_latents(uneven[0].numpy(), sampling_rate=tokenizer.sampling_rate)
    z = torch.from_numpy(row["latents"])
    assert torch.equal(z, tokenizer.encode(uneven).latents[0].T)


@torch.inference_mode()
def test_encodec_normalizes_one_chunk_of_equal_channels_as_its_library_does(root):
    model = load_autoencoder(saved(root, "encodec-48"))
    library = load_library_model(saved(root, "encodec-48"))
    x = 0.2 * signal(model, 8000)[:, :1].expand(1, 2, 8000)
    _, scales, _ = library.encode(x, return_dict=False)
    gain = LatentTokenizer.from_autoencoder(model).encode(x).gain
    torch.testing.assert_close(scales[0].flatten(), gain, rtol=1e-3, atol=0)


@torch.inference_mode()
def test_cosmos_takes_the_peak_of_the_whole_and_gives_it_back(root):
    tokenizer = LatentTokenizer.from_autoencoder(load_autoencoder(saved(root, "cosmos")))
    library = load_library_model(saved(root, "cosmos"))
    x = 0.05 * signal(tokenizer.autoencoder, 1000)
    out = tokenizer.encode(x)
    assert relative(out.latents, library_encode(library, x)) < 1e-3
    assert out.gain.item() == pytest.approx(x.abs().max().item() / 0.95, rel=1e-3)
    audio = tokenizer.decode(out.latents, decoder="continuous", gain=out.gain)
    assert relative(audio, library_decode(library, out.latents) * out.gain) < 1e-5


def test_latent_statistics_come_from_the_checkpoint(root):
    tokenizer = LatentTokenizer.from_autoencoder(load_autoencoder(saved(root, "minimax")))
    assert tokenizer.latents_mean.tolist() == CASES["minimax"].options["latents_mean"]
    assert tokenizer.latents_std.tolist() == CASES["minimax"].options["latents_std"]
