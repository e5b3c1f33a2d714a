"""Models that code two channels together learn both, on every way of training them."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from libraries import EVERYTHING, AutoencoderOobleck
from models import RATE, make_autoencoder, tone
from short_runs import LOOP, read_log

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, write_audio
from tokenizer.autoencoders import Autoencoder
from tokenizer.autoencoders.adapter import OobleckAutoencoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.training.augmentation import NO_AUGMENTATION
from tokenizer.training.autoencoder import ReconstructionConfig, initialize, train_autoencoder
from tokenizer.training.bottlenecks import BOTTLENECKS, BottleneckConfig
from tokenizer.training.clips import scan
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
from tokenizer.training.end_to_end import train_end_to_end
from tokenizer.training.quantizer import FitConfig, fit_quantizer
from tokenizer.training.reconstruction import CropRun

WAVEFORM = ReconstructionConfig(
    mel_weight=0.0, energy_weight=0.0, waveform_weight=1.0, noise_range=(0.0, 0.0)
)
STEPS = replace(LOOP, steps=150, batch_size=4, learning_rate=5e-3, ema_decay=0.95)
RUN = {"losses": WAVEFORM, "augmentation": NO_AUGMENTATION, "progress": False}


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Clips of two independent channels."""
    root = tmp_path_factory.mktemp("wide")
    for i in range(12):
        write_audio(root / f"{i}.wav", tone(1.0, RATE, channels=2, seed=i), RATE)
    return root


def oobleck() -> Autoencoder:
    torch.manual_seed(0)
    sizes = {"downsampling_ratios": [2], "channel_multiples": [1], "sampling_rate": RATE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        small = AutoencoderOobleck(
            encoder_hidden_size=8, decoder_input_channels=4, decoder_channels=8, **sizes
        )
    return OobleckAutoencoder(small.eval())


def lapped() -> LappedAutoencoder:
    torch.manual_seed(0)
    sizes = {"channels": 2, "latent_dim": 32, "envelope_dim": 4}
    return LappedAutoencoder.from_config(make_autoencoder().to_config() | sizes).eval()


def snr(estimate: np.ndarray, target: np.ndarray) -> float:
    return float(10 * np.log10(np.square(target).sum() / np.square(estimate - target).sum()))


def mid_and_side(tokenizer: LatentTokenizer, codes: bool = False) -> np.ndarray:
    """SNR in dB of mid and of side, of clips that no training has seen."""
    encode, decode = (
        (tokenizer.encode_codes, tokenizer.decode_codes)
        if codes
        else (tokenizer.encode_latents, tokenizer.decode_latents)
    )
    waves = [tone(1.0, RATE, channels=2, seed=seed) for seed in (97, 98, 99)]
    found = []
    for wave in waves:
        decoded = decode(encode(wave, sampling_rate=RATE))
        found.append([snr(decoded[0] + s * decoded[1], wave[0] + s * wave[1]) for s in (1, -1)])
    return np.mean(found, axis=0)


@pytest.mark.slow
def test_stage_1_raises_mid_and_side_of_the_bundled_family(wide, tmp_path):
    """From weights that know nothing of audio, and its components are a codec from the start."""
    model, clips = lapped(), scan(wide)
    before = mid_and_side(LatentTokenizer.from_autoencoder(model))
    run = CropRun(clips, tmp_path, STEPS, WAVEFORM, NO_AUGMENTATION)
    initialize(model, run.crops(RATE, num_channels=2)[0])
    components = mid_and_side(LatentTokenizer.from_autoencoder(model))
    assert min(components - before) > 1, (before, components)
    model = lapped()
    train_autoencoder(model, clips, tmp_path, loop=STEPS, pretrained=True, **RUN)
    after = mid_and_side(LatentTokenizer.from_autoencoder(model.eval()))
    assert min(after - before) > 1, (before, after)


@pytest.mark.slow
def test_finetuning_on_latents_raises_mid_and_side(wide, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(oobleck())
    before = mid_and_side(tokenizer)
    finetune = FinetuneConfig(decoder="continuous")
    finetune_decoder(tokenizer, scan(wide), tmp_path, loop=STEPS, finetune=finetune, **RUN)
    after = mid_and_side(tokenizer)
    assert min(after - before) > 2, (before, after)
    assert any("snr_side" in name for line in read_log(tmp_path) for name in line)


@pytest.mark.slow
@pytest.mark.parametrize("make", [oobleck, lapped])
def test_finetuning_on_codes_raises_mid_and_side(make, wide, tmp_path):
    model, clips = make(), scan(wide)
    tokenizer = LatentTokenizer.from_autoencoder(model)
    quantizer = ResidualVectorQuantizer(model.latent_dim, 6, 32)
    fit_quantizer(tokenizer, clips, quantizer, cache=tmp_path / "z.npy", config=FitConfig())
    before, codes = mid_and_side(tokenizer, codes=True), tokenizer.codes_fingerprint
    finetune = FinetuneConfig(min_codebooks=6)
    finetune_decoder(tokenizer, clips, tmp_path / "run", loop=STEPS, finetune=finetune, **RUN)
    after = mid_and_side(tokenizer, codes=True)
    assert tokenizer.codes_fingerprint == codes
    assert min(after - before) > 0.5, (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOTTLENECKS if EVERYTHING else ["rvq"])
def test_a_quantizer_in_training_keeps_the_side(kind, wide, tmp_path):
    config = BottleneckConfig(codebooks=6, codebook_size=64, codebook_dim=8, codebook_dropout=0.0)
    loop = replace(STEPS, learning_rate=2e-3)
    tokenizer = train_end_to_end(
        lapped(), scan(wide), tmp_path, kind=kind, config=config, loop=loop, **RUN
    )
    mid, side = mid_and_side(tokenizer, codes=True)
    # Independent channels are as good in the side as in the mid.
    assert min(mid, side) > 0.3, (mid, side)
    assert abs(mid - side) < 0.5, (mid, side)
