"""Stage 1 of other libraries' autoencoders: noise, resume, posteriors, quantizers, from scratch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from libraries import CASES, load_library_model, make_library_model, saved
from models import RATE, tone
from short_runs import LOOP, interrupt_at, read_log, short_train

from tokenizer import write_audio
from tokenizer.autoencoders import Autoencoder
from tokenizer.autoencoders.adapter import adapter
from tokenizer.training import end_to_end, reconstruction
from tokenizer.training.augmentation import NO_AUGMENTATION, Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.bottlenecks import BottleneckConfig
from tokenizer.training.clips import scan
from tokenizer.training.end_to_end import train_end_to_end
from tokenizer.training.posterior import kl_divergence


def make(name: str) -> Autoencoder:
    kind = name.removesuffix("-48").removesuffix("-odd")
    return adapter(kind)(make_library_model(name))


@pytest.fixture(autouse=True)
def few_held_out_crops(monkeypatch):
    monkeypatch.setattr(reconstruction, "HELD_OUT_CROPS", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_as_if_it_had_never_stopped(name, audio, tmp_path, monkeypatch):
    loop = replace(LOOP, steps=4, checkpoint_every=2)
    before = make(name).state_dict()
    whole = short_train(audio, tmp_path / "whole", make(name), loop=loop, pretrained=True)
    weights = {key: value.clone() for key, value in whole.state_dict().items()}
    moved = {key.partition(".")[0] for key in weights if not weights[key].equal(before[key])}
    assert moved == {"encoder", "decoder"}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            short_train(audio, tmp_path / "cut", make(name), loop=loop, pretrained=True)
    resumed = short_train(audio, tmp_path / "cut", make(name), loop=loop, pretrained=True)
    assert all(value.equal(weights[key]) for key, value in resumed.state_dict().items())


def test_noise_grows_with_the_latents_about_their_means():
    encoder = make("oobleck").encoder
    z = torch.randn(3, 4, 50) * torch.tensor([1.0, 2.0, 0.5, 1.0])[:, None]
    unit = encoder.noise_unit(z)
    assert float(unit) == pytest.approx(float((z - z.mean((0, 2), keepdim=True)).std()))
    torch.testing.assert_close(encoder.noise_unit(3 * z + 100 * z[0, :, :1]), 3 * unit)
    # An encoder in training gains nothing by scaling its latents.
    scale = torch.ones((), requires_grad=True)
    ratio = (scale * z).square().mean() / encoder.noise_unit(scale * z).square()
    (gradient,) = torch.autograd.grad(ratio, scale)
    assert abs(float(gradient)) < 1e-5


def test_the_posterior_is_the_librarys_own(tmp_path):
    model = load_library_model(saved(tmp_path, "oobleck"))
    x = torch.from_numpy(tone(0.2, channels=2))[None]
    theirs = model.encode(x).latent_dist
    ours = make("oobleck").encoder.posterior(x)
    assert ours is not None
    torch.testing.assert_close(ours, (theirs.mean, theirs.std), rtol=1e-4, atol=1e-5)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(theirs.mean, theirs.std), torch.distributions.Normal(0, 1)
    )
    torch.testing.assert_close(kl_divergence(*ours), reference.sum(1).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_heavier_kl_weight_brings_the_posterior_nearer_to_the_gaussian(audio, tmp_path):
    loop, divergence = replace(LOOP, steps=40, learning_rate=5e-3, log_every=10), {}
    for weight in (0.0, 1.0):
        out = tmp_path / str(weight)
        model = short_train(audio, out, make("oobleck"), loop=loop, kl_weight=weight)
        x = torch.from_numpy(tone(0.5, channels=2, seed=5))[None]
        with torch.no_grad():
            posterior = model.encoder.posterior(x)
        assert posterior is not None
        assert posterior[0].equal(model.encoder(x))  # which is deterministic
        divergence[weight] = float(kl_divergence(*posterior))
        assert {"val/mel_clean", "val/mel_sampled"} <= set(read_log(out)[-1])
    assert divergence[1.0] < divergence[0.0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oobleck", "dac", "encodec-48"])
@pytest.mark.parametrize("kind", ["rvq", "factorized", "rfsq"])
def test_a_quantizer_trains_with_each(name, kind, audio, tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "_INITIAL_FRAMES", 2000)
    dim = make(name).latent_dim
    tokenizer = train_end_to_end(
        make(name),
        scan(audio),
        tmp_path,
        kind=kind,
        config=BottleneckConfig(codebooks=3, codebook_size=16, codebook_dim=min(2, dim)),
        loop=replace(LOOP, steps=30, learning_rate=3e-3),
        losses=ReconstructionConfig(),
        augmentation=Augmentation(),
        progress=False,
    )
    losses = [line["train/loss"] for line in read_log(tmp_path) if "train/loss" in line]
    assert np.mean(losses[-3:]) < losses[0]
    wave = tone(0.5, tokenizer.sampling_rate, channels=tokenizer.autoencoder.num_channels)
    row = tokenizer.encode_codes(wave, sampling_rate=tokenizer.sampling_rate)
    assert row["codes"].shape[1] == 3
    assert tokenizer.decode_codes(row).shape == wave.shape


FROM_SCRATCH = {
    "oobleck": {
        "encoder_hidden_size": 16,
        "decoder_input_channels": 8,
        "decoder_channels": 8,
        "downsampling_ratios": [2, 4],
        "channel_multiples": [1, 1],
        "audio_channels": 1,
    },
    "dac": {
        "encoder_hidden_size": 8,
        "hidden_size": 8,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [2, 4],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FROM_SCRATCH)
def test_a_model_from_scratch_gets_better_with_more_steps(kind, tmp_path):
    (tmp_path / "audio").mkdir()
    for i in range(12):
        write_audio(tmp_path / f"audio/{i}.wav", tone(4.0, RATE, seed=i), RATE)
    torch.manual_seed(0)
    model = adapter(kind).from_fields({"sampling_rate": RATE} | FROM_SCRATCH[kind])
    loop = replace(LOOP, steps=160, learning_rate=3e-3, ema_decay=0.95, validate_every=20)
    out = tmp_path / "run"
    short_train(tmp_path / "audio", out, model, loop=loop, augmentation=NO_AUGMENTATION)
    logged = [line for line in read_log(out) if "val/mel_clean" in line]

    def best(steps: int) -> float:
        """The smallest distance until then: processors differ in which way a run fluctuates."""
        return min(line["val/mel_clean"] for line in logged if line["step"] <= steps)

    # Each doubling takes minutes to show: examples/train_from_scratch.py.
    assert best(160) < best(40) < best(20)
    assert max(line["val/snr_clean"] for line in logged[1:]) > logged[0]["val/snr_clean"]
