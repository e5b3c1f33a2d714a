"""The bundled family of stereo: mid and side share a row of latents."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from models import DIM, HOP, RATE, make_autoencoder, make_stereo_autoencoder, make_tokenizer, tone

from tokenizer import LatentTokenizer, load_tokenizer, write_audio
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.autoencoders.lapped.paths import LevelStatistics, log_magnitudes
from tokenizer.autoencoders.lapped.stereo import coefficients, each_channel, mid_and_side
from tokenizer.cli import main
from tokenizer.networks.spectral import mdct
from tokenizer.training.clips import scan
from tokenizer.training.detail import add_detail
from tokenizer.training.noise import add_decoder_noise


@pytest.fixture(scope="module")
def tokenizer() -> LatentTokenizer:
    return make_tokenizer(make_stereo_autoencoder())


def wide(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Coloured noise whose channels are alike by half."""
    white = torch.randn(1, 3, num_samples, generator=torch.Generator().manual_seed(seed))
    x = torch.nn.functional.avg_pool1d(white, 9, 1, 4, count_include_pad=False)
    x = x[:, :2] + x[:, 2:]
    return x / x.square().mean().sqrt()


def test_coefficients_are_those_of_mid_and_side():
    x = wide(5 * HOP + 3)[0]
    expected = [mdct((x[0] + sign * x[1]) / 2**0.5, HOP) for sign in (1, -1)]
    torch.testing.assert_close(coefficients(x, HOP), torch.cat(expected, dim=-1))
    torch.testing.assert_close(mid_and_side(mid_and_side(x)), x)
    assert torch.equal(coefficients(x[:1], HOP), mdct(x[0], HOP))


@torch.inference_mode()
def test_the_linear_path_is_one_principal_component_analysis_of_both():
    sizes = {"channels": 2, "hop_length": 20, "latent_dim": 15}
    model = LappedAutoencoder.from_config(make_autoencoder().to_config() | sizes).eval()
    x = wide(20_000)
    c = coefficients(x[0], 20)
    covariance = c.T @ c / len(c)
    model.initialize(covariance)
    for head in (model.encoder.head, model.decoder.head):
        head.weight.zero_()
    model.decoder.head.bias[40:80] = -14.0
    z = model.encoder(x)
    assert z.shape[1] == 15
    error = (model.decoder(z) - x).square().mean()
    # Eckart and Young: no linear code of 15 dimensions does better than the discarded eigenvalues.
    discarded = torch.linalg.eigvalsh(covariance.double())[:-15].sum()
    assert float(error) == pytest.approx(float(discarded) / 40, rel=0.02)


@torch.inference_mode()
def test_levels_of_each_channel_come_back():
    """Envelope latents alone: noise whose mid and side are loud in turn."""
    noise = torch.randn(2, 400, 10 * HOP, generator=torch.Generator().manual_seed(0))
    loud = torch.rand(2, 400, 1, generator=torch.Generator().manual_seed(1)) * 6 - 4
    x = mid_and_side((noise * loud.exp()).flatten(1))[None]
    x = x / x.square().mean().sqrt()
    c = coefficients(x[0], HOP)
    levels = each_channel(log_magnitudes, c, HOP).double()
    model = make_stereo_autoencoder(envelope_dim=4, noise=False)
    model.initialize(c.T @ c / len(c), LevelStatistics(levels.mean(0), levels.T.cov()))
    for head in (model.encoder.head, model.decoder.head):
        head.weight.zero_()
    said = model.decoder.envelope(model.encoder(x)[0].T)[5::10].unflatten(1, (2, HOP)).mean(2)
    for channel in range(2):
        agreement = torch.corrcoef(torch.stack([said[:400, channel], loud[channel, :, 0]]))[0, 1]
        assert float(agreement) > 0.9


@torch.inference_mode()
def test_noise_of_mid_and_side_is_independent():
    model = make_stereo_autoencoder()
    z = model.encoder(wide(800 * HOP))
    audio, expected = model.decoder.parts(z, None, torch.tensor([0]))
    torch.testing.assert_close(audio, model.decoder(z), atol=1e-5, rtol=1e-4)
    mid, side = mid_and_side(audio - expected)[0]
    assert min(float(mid.std()), float(side.std())) > 0.01
    assert abs(float(torch.corrcoef(torch.stack([mid, side]))[0, 1])) < 0.02


@torch.inference_mode()
def test_a_mono_file_is_one_of_equal_channels(tokenizer):
    wave = tone(0.7)
    row = tokenizer.encode_codes(wave, sampling_rate=RATE)
    both = tokenizer.encode_codes(np.concatenate([wave, wave]), sampling_rate=RATE)
    np.testing.assert_array_equal(row["codes"], both["codes"])
    audio = tokenizer.decode_codes(row)
    assert audio.shape == wave.shape
    np.testing.assert_array_equal(audio[0], tokenizer.decode_codes(both)[0])
    three = np.concatenate([tone(0.7, channels=2, seed=3), wave])
    frames = tokenizer.autoencoder.num_frames(wave.shape[1])
    row = tokenizer.encode_latents(three, sampling_rate=RATE)
    assert row["latents"].shape == (2 * frames, DIM)
    assert tokenizer.decode_latents(row).shape == three.shape


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again, wave = load_tokenizer(tmp_path), tone(0.4, channels=2)
    assert again.autoencoder.num_channels == 2
    assert again.fingerprint == tokenizer.fingerprint
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (again, tokenizer))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_array_equal(again.decode_codes(row), tokenizer.decode_codes(ours))
    plain = tokenizer.autoencoder.for_codes().eval()
    z = plain.encoder(torch.from_numpy(wave)[None])
    assert torch.equal(z, tokenizer.autoencoder.encoder(torch.from_numpy(wave)[None]))


@pytest.fixture(scope="module")
def stereo_audio(tmp_path_factory):
    root = tmp_path_factory.mktemp("stereo")
    for i in range(6):
        write_audio(root / f"{i}.wav", tone(1.5, RATE, channels=2, seed=i), RATE)
    return root


@pytest.mark.slow
def test_detail_carries_more_of_mid_and_side_and_leaves_codes_alone(stereo_audio):
    torch.manual_seed(0)
    config = make_autoencoder().to_config() | {"channels": 2}
    model = LappedAutoencoder.from_config(config)
    model.initialize(torch.diag(torch.linspace(2, 0.01, HOP).repeat(2)))
    plain = make_tokenizer(model.eval())
    detailed = add_detail(plain, scan(stereo_audio), 24, seed=0)
    wave = tone(1.0, channels=2, seed=1)
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (plain, detailed))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_allclose(detailed.decode_codes(ours), plain.decode_codes(row), atol=1e-6)
    before, after = (snr_of_mid_and_side(t, wave) for t in (plain, detailed))
    assert min(np.subtract(after, before)) > 0.5, (before, after)
    with pytest.raises(ValueError, match=rf"\b{2 * HOP}\b"):
        add_detail(plain, scan(stereo_audio), 2 * HOP, seed=0)


def snr_of_mid_and_side(tokenizer: LatentTokenizer, wave: np.ndarray) -> list[float]:
    decoded = tokenizer.decode_latents(tokenizer.encode_latents(wave, sampling_rate=RATE))
    pairs = [(decoded[0] + s * decoded[1], wave[0] + s * wave[1]) for s in (1, -1)]
    return [10 * np.log10(np.square(t).sum() / np.square(e - t).sum()) for e, t in pairs]


def test_noise_can_be_added_shut_and_opened_from_a_bin_of_each_channel():
    plain = make_tokenizer(make_stereo_autoencoder(noise=False))
    noisy, wave = add_decoder_noise(plain), tone(0.5, channels=2)
    row = plain.encode_codes(wave, sampling_rate=RATE)
    np.testing.assert_allclose(noisy.decode_codes(row), plain.decode_codes(row), atol=1e-6)
    decoder = noisy.finetuned_decoder
    decoder.open_noise(HOP // 2)
    heard = noisy.decode_codes(row) - plain.decode_codes(row)
    added = coefficients(torch.from_numpy(heard), HOP)[3:-3].square().mean(0).unflatten(0, (2, HOP))
    # The waveform learned above is given up, too; below, nothing changes.
    assert float(added[:, : HOP // 2 - 1].max()) < 1e-9
    assert float(added[:, HOP // 2 :].mean(1).min()) > 1e-7


@pytest.mark.slow
def test_the_commands_from_audio_to_files(stereo_audio, tmp_path, capsys):
    def latok(*words: object) -> int:
        return main([str(word) for word in words])

    short = ["--steps", 2, "--batch-size", 2, "--crop-seconds", 0.3, "--held-out", 1]
    short += ["--num-workers", 0, "--warmup-steps", 1]
    sizes = ["--preset", "tiny", "--sampling-rate", RATE, "--hop-length", HOP, "--channels", 2]
    out = [tmp_path / str(i) for i in range(4)]
    assert latok("train", stereo_audio, "--out", out[1], *sizes, *short) == 0
    fit = ["fit", out[1] / "model", stereo_audio, "--out", out[2], "--codebooks", 2]
    assert latok(*fit, "--codebook-size", 8) == 0
    finetune = ["finetune", out[2] / "model", stereo_audio, "--out", out[3], "--noise"]
    assert latok(*finetune, *short) == 0
    assert "val/snr_side_2" in (out[3] / "log.jsonl").read_text()
    model = ["--model", out[3] / "model"]
    capsys.readouterr()
    assert latok("evaluate", stereo_audio, *model) == 0
    assert "side dB" in capsys.readouterr().out
    write_audio(tmp_path / "mono.wav", tone(0.4), RATE)
    for path, channels in ((stereo_audio / "0.wav", 2), (tmp_path / "mono.wav", 1)):
        assert latok("encode", path, tmp_path / "a.ltk", *model) == 0
        assert latok("decode", tmp_path / "a.ltk", tmp_path / "back.wav", *model) == 0
        before, after = soundfile.info(path), soundfile.info(tmp_path / "back.wav")
        assert (after.frames, after.channels) == (before.frames, channels)
    # A model that is there has its own number of channels.
    again = ["train", stereo_audio, "--out", tmp_path / "no", "--init", out[1] / "model"]
    capsys.readouterr()
    assert latok(*again, "--channels", 1) == 2
    assert "channels 2, not 1" in capsys.readouterr().err


def test_sizes_that_are_none():
    with pytest.raises(ValueError, match=r"channels .* 3"):
        make_stereo_autoencoder(channels=3)
    mono = make_autoencoder()
    assert "channels" not in mono.to_config()
    assert replace(mono.config, channels=1) == mono.config
