"""Noise for decoders that were trained without it."""

import numpy as np
import pytest
import torch
from models import HOP, RATE, make_tokenizer, tone

from tokenizer.cli import main
from tokenizer.model.loading import load_tokenizer
from tokenizer.training.noise import add_decoder_noise


def test_codes_and_sound_stay_until_a_decoder_opens_its_noise(tokenizer):
    wave = tone(0.7)
    noisy = add_decoder_noise(tokenizer)
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (tokenizer, noisy))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    assert noisy.codes_fingerprint == tokenizer.codes_fingerprint
    for name in ("continuous", "finetuned"):
        before, after = (t.decode_codes(row, decoder=name) for t in (tokenizer, noisy))
        np.testing.assert_allclose(after, before, atol=1e-5)
    shut = noisy.decode_codes(row, decoder="continuous")
    noisy.finetuned_decoder.open_noise(0)
    opened = noisy.decode_codes(row)
    assert np.abs(opened - before).max() > 1e-4
    np.testing.assert_array_equal(noisy.decode_codes(row, decoder="continuous"), shut)
    # What is open stays as it is.
    noisy.finetuned_decoder.open_noise(0)
    np.testing.assert_array_equal(add_decoder_noise(noisy).decode_codes(row), opened)


def test_below_the_lowest_bin_of_noise_all_stays(tokenizer):
    noisy = add_decoder_noise(tokenizer)
    row = noisy.encode_codes(tone(0.7), sampling_rate=RATE)
    before = noisy.decode_codes(row)
    noisy.finetuned_decoder.open_noise(HOP // 2)
    change = np.abs(np.fft.rfft((noisy.decode_codes(row) - before)[0]))
    middle = len(change) // 2
    assert change[: int(0.9 * middle)].max() < 0.02 * change[middle:].max()


@pytest.mark.slow
def test_the_command_finetunes_it_and_all_routes_agree(audio, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "plain")
    command = ["finetune", str(tmp_path / "plain"), str(audio), "--out", str(tmp_path / "run")]
    command += ["--noise", "--noise-from", "1000", "--steps", "3", "--batch-size", "2"]
    main(
        [
            *command,
            "--held-out",
            "1",
            "--num-workers",
            "0",
            "--crop-seconds",
            "0.5",
            "--speed",
            "0.5",
        ]
    )
    noisy, plain = load_tokenizer(tmp_path / "run" / "model"), load_tokenizer(tmp_path / "plain")
    assert noisy.codes_fingerprint == plain.codes_fingerprint
    wave = tone(1.3)
    # The decoder of codes began as a copy of the continuous one, which stays as it was.
    latents = plain.encode_latents(wave, sampling_rate=RATE)
    exact, unchanged = (t.decode_latents(latents) for t in (plain, noisy))
    np.testing.assert_allclose(unchanged, exact, atol=1e-5)
    # 1000 Hz is at a quarter of the bins.
    levels = noisy.finetuned_decoder.noise_bias.split(
        [noisy.hop_length // 4, noisy.hop_length * 3 // 4]
    )
    assert float(levels[0].max()) < -14 < -2 < float(levels[1].min())
    row = noisy.encode_codes(wave, sampling_rate=RATE)
    whole = noisy.decode_codes(row)
    decoder = noisy.stream_decoder(gain=row["gain"])
    pieces = [decoder.push(row["codes"][i : i + 7]) for i in range(0, len(row["codes"]), 7)]
    streamed = np.concatenate([*pieces, decoder.finish()], axis=1)[:, : whole.shape[1]]
    np.testing.assert_array_equal(streamed, whole)
    codes = torch.from_numpy(np.stack([row["codes"]] * 2)).long().mT
    latents = noisy.dequantize(codes)
    single, pair = (noisy.decode(z, decoder="finetuned") for z in (latents[:1], latents))
    assert torch.equal(single[0], pair[0])
    assert torch.equal(pair[0], pair[1])
