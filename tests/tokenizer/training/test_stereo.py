"""Stereo that is stereo: models that code two channels learn both."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from libraries import AutoencoderOobleck
from models import RATE, tone
from short_runs import LOOP, read_log

from tokenizer import LatentTokenizer, write_audio
from tokenizer.autoencoders.adapter import OobleckAutoencoder
from tokenizer.training.augmentation import NO_AUGMENTATION
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.clips import scan
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder


def snr(estimate: np.ndarray, target: np.ndarray) -> float:
    return float(10 * np.log10(np.square(target).sum() / np.square(estimate - target).sum()))


def mid_and_side(tokenizer: LatentTokenizer, wave: np.ndarray) -> list[float]:
    row = tokenizer.encode_latents(wave, sampling_rate=RATE)
    decoded = tokenizer.decode_latents(row)
    return [snr(decoded[0] + sign * decoded[1], wave[0] + sign * wave[1]) for sign in (1, -1)]


@pytest.mark.slow
def test_finetuning_raises_mid_and_side_of_wide_stereo(tmp_path):
    torch.manual_seed(0)
    sizes = {"downsampling_ratios": [2], "channel_multiples": [1], "sampling_rate": RATE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        small = AutoencoderOobleck(
            encoder_hidden_size=8, decoder_input_channels=4, decoder_channels=8, **sizes
        )
    tokenizer = LatentTokenizer.from_autoencoder(OobleckAutoencoder(small.eval()))
    (tmp_path / "audio").mkdir()
    for i in range(6):  # two independent channels
        write_audio(tmp_path / f"audio/{i}.wav", tone(1.0, RATE, channels=2, seed=i), RATE)
    held_out = tone(1.0, RATE, channels=2, seed=99)
    before = mid_and_side(tokenizer, held_out)
    finetune_decoder(
        tokenizer,
        scan(tmp_path / "audio"),
        tmp_path / "run",
        loop=replace(LOOP, steps=150, batch_size=4, learning_rate=5e-3),
        losses=ReconstructionConfig(
            mel_weight=0.0, energy_weight=0.0, waveform_weight=1.0, noise_range=(0.0, 0.0)
        ),
        finetune=FinetuneConfig(decoder="continuous"),
        augmentation=NO_AUGMENTATION,
        progress=False,
    )
    after = mid_and_side(tokenizer, held_out)
    assert min(np.subtract(after, before)) > 2, (before, after)
    names = {name for line in read_log(tmp_path / "run") for name in line}
    assert any("snr_side" in name for name in names)
