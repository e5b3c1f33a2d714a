"""Noise for decoders that were trained without it."""

import numpy as np
import pytest
import torch
from models import RATE, make_tokenizer, tone

from tokenizer.cli import main
from tokenizer.model.loading import load_tokenizer
from tokenizer.training.noise import open_noise


def test_codes_stay_and_only_the_chosen_decoder_changes(tokenizer):
    wave = tone(0.7)
    noisy = open_noise(tokenizer, "finetuned")
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (tokenizer, noisy))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    assert noisy.codes_fingerprint == tokenizer.codes_fingerprint
    assert noisy.fingerprint != tokenizer.fingerprint
    before, after = (t.decode_codes(row, decoder="continuous") for t in (tokenizer, noisy))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.abs(noisy.decode_codes(row) - tokenizer.decode_codes(row)).max() > 1e-4
    # A second time, the other decoder: the first keeps what it has.
    both = open_noise(noisy, "continuous")
    np.testing.assert_array_equal(both.decode_codes(row), noisy.decode_codes(row))
    assert np.abs(both.decode_codes(row, decoder="continuous") - before).max() > 1e-4


@pytest.mark.slow
def test_the_command_finetunes_it_and_all_routes_agree(audio, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "plain")
    command = ["finetune", str(tmp_path / "plain"), str(audio), "--out", str(tmp_path / "run")]
    command += ["--noise", "--steps", "3", "--batch-size", "2", "--held-out", "1"]
    main([*command, "--num-workers", "0", "--crop-seconds", "0.5", "--speed", "0.5"])
    noisy, plain = load_tokenizer(tmp_path / "run" / "model"), load_tokenizer(tmp_path / "plain")
    assert noisy.codes_fingerprint == plain.codes_fingerprint
    wave = tone(1.3)
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
