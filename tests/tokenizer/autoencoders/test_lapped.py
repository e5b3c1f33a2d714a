import math

import pytest
import torch
from models import make_autoencoder

from tokenizer.autoencoders import build_autoencoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.autoencoders.lapped.paths import LevelStatistics, log_magnitudes
from tokenizer.model.tiling import decode_tiles, encode_tiles
from tokenizer.networks.spectral import imdct, mdct
from tokenizer.training.losses import emphasize

CONFIG = LappedConfig(
    sampling_rate=8000,
    hop_length=20,
    latent_dim=12,
    encoder_width=16,
    encoder_depth=2,
    decoder_width=24,
    decoder_depth=2,
    kernel_size=5,
)


def make(**changes) -> LappedAutoencoder:
    torch.manual_seed(0)
    model = LappedAutoencoder(LappedConfig(**{**vars(CONFIG), **changes}))
    with torch.no_grad():  # the networks start near zero: give them something to do
        torch.nn.init.normal_(model.encoder.head.weight, std=0.3)
        torch.nn.init.normal_(model.decoder.head.weight, std=0.3)
    return model.eval()


def signal(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 1, length, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_frames_and_samples_for_every_length_up_to_three_hops():
    model = make()
    for length in range(1, 3 * CONFIG.hop_length + 1):
        z = model.encoder(signal(length))
        assert z.shape == (1, 12, model.num_frames(length))
        audio = model.decoder(z)
        assert audio.shape == (1, 1, model.num_samples(z.shape[-1]))
        assert audio.shape[-1] >= length


@torch.inference_mode()
def test_initialized_linear_path_is_a_principal_component_analysis():
    torch.manual_seed(0)
    model = LappedAutoencoder(CONFIG).eval()
    # Coloured noise: neighbouring samples alike, so that 12 of 20 components hold nearly all.
    white = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.avg_pool1d(white[None], 9, 1, 4)[0]
    x = x / x.square().mean().sqrt()
    c = mdct(x, CONFIG.hop_length)[0]
    covariance = c.T @ c / len(c)
    model.initialize(covariance)
    for head in (model.encoder.head, model.decoder.head):
        head.weight.zero_()
    model.decoder.head.bias[CONFIG.hop_length : 2 * CONFIG.hop_length] = -14.0
    z = model.encoder(x[None])
    error = (model.decoder(z)[..., : x.shape[-1]] - x).square().mean()
    # Eckart and Young: no linear code of 12 dimensions does better than the discarded eigenvalues.
    discarded = torch.linalg.eigvalsh(covariance.double())[: -CONFIG.latent_dim].sum()
    assert float(error) == pytest.approx(float(discarded) / CONFIG.hop_length, rel=0.02)
    assert float(z.std()) == pytest.approx(1.0, abs=0.05)


@torch.inference_mode()
def test_emphasis_moves_what_the_linear_path_loses_to_low_frequencies():
    white = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(1))
    x = torch.nn.functional.avg_pool1d(white[None], 5, 1, 2)
    c = mdct(x[0] / x.square().mean().sqrt(), CONFIG.hop_length)[0]
    lost = []
    for emphasis in (0.0, 0.9):
        model = make()
        model.initialize(c.T @ c / len(c), emphasis=emphasis)
        for head in (model.encoder.head, model.decoder.head):
            head.weight.zero_()
        model.decoder.head.bias[CONFIG.hop_length : 2 * CONFIG.hop_length] = -14.0
        error = model.decoder(model.encoder(x))[..., : x.shape[-1]] - x
        lost.append([float(emphasize(error, e).square().mean()) for e in (0.0, 0.9)])
    (plain, plain_emphasized), (weighted, weighted_emphasized) = lost
    assert weighted > plain
    assert weighted_emphasized < plain_emphasized


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 20, 999, 1000 * 20, 1024 * 20, 1034 * 20 + 7, 2100 * 20 + 3])
def test_tiles_equal_the_whole(length):
    model = make()
    x = signal(length)
    whole = model.encoder(x)
    tiled = torch.cat(list(encode_tiles(model, [x])), -1)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=1e-4)
    audio = model.decoder(whole)
    pieces = torch.cat(list(decode_tiles(model, model.decoder, [whole], 0.0)), -1)
    assert pieces.shape == audio.shape
    torch.testing.assert_close(pieces, audio, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("block", [313, 20 * 1024, 20 * 1030, 5000])
def test_blocks_of_any_size_give_equal_bits(block):
    model = make()
    x = signal(2100 * 20 + 3)
    at_once = torch.cat(list(encode_tiles(model, [x])), -1)
    streamed = torch.cat(list(encode_tiles(model, x.split(block, -1))), -1)
    assert torch.equal(at_once, streamed)
    audio = torch.cat(list(decode_tiles(model, model.decoder, [at_once], 0.2)), -1)
    pieces = at_once.split(max(block // 20, 1), -1)
    assert torch.equal(audio, torch.cat(list(decode_tiles(model, model.decoder, pieces, 0.2)), -1))


@torch.inference_mode()
def test_groups_are_coded_each_as_if_alone():
    model = make()
    x = torch.cat([signal(30_000, seed) for seed in range(3)])
    together = torch.cat(list(encode_tiles(model, [x])), -1)
    for i in range(3):
        alone = torch.cat(list(encode_tiles(model, [x[i : i + 1]])), -1)
        assert torch.equal(together[i : i + 1], alone)


@torch.inference_mode()
def test_context_is_enough_and_not_more_than_needed():
    model = make()
    frame, far = 40, model.encoder.context
    x = signal(100 * 20)
    z = model.encoder(x)
    for distance, changes in ((far + 2, False), (far - 1, True)):
        other = x.clone()
        other[..., (frame + distance) * 20 : (frame + distance) * 20 + 20] += 1
        assert torch.equal(model.encoder(other)[..., frame], z[..., frame]) != changes
    audio = model.decoder(z)
    far = model.decoder.context
    for distance, changes in ((far + 1, False), (far - 1, True)):
        other = z.clone()
        other[..., frame + distance] += 1
        block = slice(frame * 20, frame * 20 + 20)
        assert torch.equal(model.decoder(other)[..., block], audio[..., block]) != changes


@torch.inference_mode()
def test_gates_can_shut_off():
    model = make()
    model.decoder.head.weight.zero_()
    model.decoder.head.bias.copy_(torch.tensor([-99.0, -99.0, 0.0]).repeat_interleave(20))
    assert float(model.decoder(torch.randn(1, 12, 50)).abs().max()) < 1e-4


@torch.inference_mode()
def test_levels_far_out_do_not_burst():
    decoder = make().decoder
    decoder.linear.weight.zero_()
    decoder.head.weight.mul_(1000)
    audio = decoder(torch.randn(1, 12, 50, generator=torch.Generator().manual_seed(0)))
    loudest = float(mdct(audio[:, 0], CONFIG.hop_length)[:, 1:-1].abs().max())
    assert loudest == pytest.approx(math.exp(3), rel=0.01)


@torch.inference_mode()
def test_noise_level_reaches_the_decoder_and_none_means_exact():
    model = make()
    z = torch.randn(2, 12, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.decoder(z), model.decoder(z, torch.zeros(2)))
    mixed = model.decoder(z, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(mixed[:1], model.decoder(z[:1]))
    assert not torch.allclose(mixed[1:], model.decoder(z[1:]))


def test_latents_have_unit_deviation_in_training_and_the_scale_is_learned():
    model = make().train()
    for step in range(400):
        z = model.encoder(3 * signal(1000, step)).detach()
    assert float(z.std()) == pytest.approx(1, abs=1e-4)
    assert float(model.eval().encoder(3 * signal(4000, 0)).detach().std()) == pytest.approx(
        1, abs=0.1
    )


@torch.inference_mode()
def test_envelope_latents_carry_the_levels_that_the_linear_path_loses():
    # Noise whose upper half comes and goes: 8 latents for the waveform of 20 coefficients.
    hop, frames = CONFIG.hop_length, 1000
    generator = torch.Generator().manual_seed(0)
    loud = torch.rand(frames // 50, 1, generator=generator).repeat_interleave(50, 0) * 4
    c = torch.randn(frames, hop, generator=generator) * torch.tensor([1.0] * 8 + [0.1] * 12)
    c[:, 8:] *= (loud - 2).exp()
    x = imdct(c)[None, None]
    gain = x.square().mean().sqrt()
    levels = log_magnitudes(mdct(x[0] / gain, hop)[0]).double()
    statistics = LevelStatistics(levels.mean(0), levels.T.cov())
    c = mdct(x[0] / gain, hop)[0]
    model = make(latent_dim=12, envelope_dim=4)
    model.initialize(c.T @ c / len(c), statistics)
    for head in (model.encoder.head, model.decoder.head):
        head.weight.zero_()
    z = model.encoder(x / gain)[0].T
    # The decoder's magnitudes, and what they are of.
    said = model.decoder.envelope(z)[25::50, 8:].mean(1)
    heard = (c[25::50, 8:].square().mean(1) + 1e-9).log() / 2
    agreement = torch.corrcoef(torch.stack([said, heard]))[0, 1]
    assert float(agreement) > 0.9
    assert float(said.mean()) == pytest.approx(float(heard.mean()), abs=0.7)
    # The waveform has the first 8 latents to itself.
    assert model.encoder.linear.weight[8:].abs().max() == 0
    assert model.encoder.envelope.weight[:8].abs().max() == 0


def test_envelope_latents_need_levels_and_room():
    with pytest.raises(ValueError, match="levels"):
        make(envelope_dim=4).initialize(torch.eye(20))
    with pytest.raises(ValueError, match="envelope_dim is 12 and detail_dim 0"):
        make(envelope_dim=12)


def test_checkpoints_of_removed_options():
    config = make().to_config()
    assert config["linear_path"] is True  # fingerprints are computed from it
    assert LappedConfig.from_dict(config | {"companding": 0.0}) == CONFIG
    for change in ({"linear_path": False}, {"companding": 0.3, "envelope_dim": 4}):
        with pytest.raises(ValueError, match="removed"):
            LappedAutoencoder.from_config(config | change)


def test_config_round_trip_and_refusals():
    model = make()
    again = build_autoencoder({"kind": "lapped", **model.to_config()})
    again.load_state_dict(model.state_dict())
    x = signal(500)
    assert torch.equal(again.eval().encoder(x), model.encoder(x))
    with pytest.raises(ValueError, match=r"latent_dim .* 0"):
        make(latent_dim=0)
    with pytest.raises(ValueError, match=r"kernel_size .* 4"):
        make(kernel_size=4)
    with pytest.raises(ValueError, match="bogus"):
        build_autoencoder({"kind": "lapped", **model.to_config(), "bogus": 1})
    with pytest.raises(ValueError, match=r"'nothing'.*lapped"):
        build_autoencoder({"kind": "nothing"})


def test_a_bad_batch_does_not_spoil_the_scale_of_latents():
    encoder = make_autoencoder().encoder.train()
    before = encoder.latent_scale.clone()
    encoder(torch.full((1, 1, 800), torch.nan))
    assert torch.equal(encoder.latent_scale, before)
    encoder(torch.randn(1, 1, 800))
    assert not torch.equal(encoder.latent_scale, before)


@torch.inference_mode()
def test_noise_is_that_of_its_place_in_the_signal():
    model = make(noise=True)
    z = model.encoder(signal(1100 * 20))
    whole = model.decoder(z)
    tiled = torch.cat(list(decode_tiles(model, model.decoder, [z[..., :37], z[..., 37:]], 0.0)), -1)
    torch.testing.assert_close(tiled, whole, atol=2e-5, rtol=1e-4)
    # A piece that says where it begins, away from its edges.
    edge = model.decoder.context * 20
    part = model.decoder(z[..., 500:700], None, torch.tensor([500]))[..., edge:-edge]
    torch.testing.assert_close(part, whole[..., 500 * 20 + edge : 699 * 20 - edge])
    audio, expected = model.decoder.parts(z, None, torch.tensor([0]))
    torch.testing.assert_close(audio, whole, atol=1e-5, rtol=1e-4)
    other = model.decoder(z, None, torch.tensor([9]))
    noise, another = audio - expected, other - expected
    assert abs(float((noise * another).mean())) < 0.2 * float(noise.square().mean())


def test_a_decoder_without_noise_expects_what_it_decodes():
    model = make()
    z = model.encoder(signal(300))
    audio, expected = model.decoder.parts(z, None, torch.tensor([5]))
    assert torch.equal(audio, expected)
    assert torch.equal(audio, model.decoder(z))
