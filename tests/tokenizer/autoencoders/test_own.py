"""One's own modules as autoencoders, through `register_autoencoder`."""

import copy

import pytest
import torch
from models import RATE, tone

from tokenizer import (
    Autoencoder,
    LatentTokenizer,
    ResidualVectorQuantizer,
    TensorSource,
    load_tokenizer,
    register_autoencoder,
    write_audio,
)
from tokenizer.autoencoders import AUTOENCODERS
from tokenizer.transcoding.files import decode_file, encode_file


def make_class(kind="own"):
    class Blocks(torch.nn.Module):
        sampling_rate, hop_length, latent_dim, context = RATE, 80, 6, 0

        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self.config = {"width": width}
            self.encoder, self.decoder = torch.nn.Linear(80, width), torch.nn.Linear(width, 80)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def encode(self, audio):
            return self.scale * self.encoder(audio.unflatten(-1, (-1, 80))[:, 0]).mT

        def decode(self, latents):
            return self.decoder(latents.mT / self.scale).flatten(1)[:, None]

    Blocks.kind = kind
    return Blocks


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr("tokenizer.autoencoders.own.AUTOENCODERS", registry := dict(AUTOENCODERS))
    monkeypatch.setattr("tokenizer.autoencoders.AUTOENCODERS", registry)
    return register_autoencoder(make_class())


@torch.inference_mode()
def test_a_module_of_ones_own_goes_all_the_way(own, tmp_path):
    torch.manual_seed(0)
    module = own()
    tok = LatentTokenizer.from_autoencoder(module)
    assert (tok.sampling_rate, tok.hop_length, tok.latent_dim) == (RATE, 80, 6)
    wave = tone(1.23)
    latents = torch.from_numpy(tok.encode_latents(wave, sampling_rate=RATE)["latents"])
    padded = torch.nn.functional.pad(torch.from_numpy(wave), (0, -wave.shape[1] % 80))
    torch.testing.assert_close(latents.T[None], module.encode(padded[None]))
    quantizer = ResidualVectorQuantizer(6, num_codebooks=2, codebook_size=8)
    quantizer.fit(TensorSource(latents), generator=torch.Generator().manual_seed(0))
    tok.set_quantizer(quantizer).add_finetuned_decoder()
    tok.save_pretrained(tmp_path / "T")
    again = load_tokenizer(tmp_path / "T")
    assert again.fingerprint == tok.fingerprint
    row = again.encode_codes(wave, sampling_rate=RATE)
    assert again.decode_codes(row).shape == wave.shape
    write_audio(tmp_path / "a.wav", wave, RATE)
    encode_file(again, tmp_path / "a.wav", tmp_path / "a.ltk")
    assert decode_file(again, tmp_path / "a.ltk", tmp_path / "b.wav") == pytest.approx(1.23)


def test_the_decoder_is_a_copy_without_the_encoder(own):
    module = own()
    model = LatentTokenizer.from_autoencoder(module).autoencoder
    names = {key for key, _ in model.decoder.named_parameters()}
    assert names == {"network.scale", "network.decoder.weight", "network.decoder.bias"}
    decoder = copy.deepcopy(model.decoder)
    decoder(torch.randn(1, 6, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    shared = {p.data_ptr() for p in model.encoder.parameters()}
    assert not shared & {p.data_ptr() for p in model.decoder.parameters()}


@pytest.mark.usefixtures("own")
def test_what_is_refused():
    with pytest.raises(ValueError, match="dac"):
        register_autoencoder(make_class("dac"))
    other = make_class()
    other.__qualname__ = "Other"
    with pytest.raises(ValueError, match="own"):
        register_autoencoder(other)
    register_autoencoder(make_class())  # defined anew
    with pytest.raises(ValueError, match="no kind"):
        register_autoencoder(torch.nn.Linear)
    with pytest.raises(ValueError, match="register_autoencoder"):
        LatentTokenizer.from_autoencoder(torch.nn.Linear(2, 2))

    class Lacking(torch.nn.Module):
        kind = "lacking"

    register_autoencoder(Lacking)
    with pytest.raises(ValueError, match=r"lacks sampling_rate.*decode"):
        LatentTokenizer.from_autoencoder(Lacking())


@pytest.mark.usefixtures("own")
def test_a_subclass_of_autoencoder_is_registered_as_it_is():
    class Mine(Autoencoder):
        kind = "mine"

    assert register_autoencoder(Mine) is Mine
