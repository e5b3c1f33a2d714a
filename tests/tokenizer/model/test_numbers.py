"""Numbers at the edge: output is finite, as long as the input, and codes are in range."""

import numpy as np
import pytest
import torch
from hostile import outcome
from models import ENTRIES, HOP, RATE, REFUSED, generated_source, make_tokenizer, tone

from tokenizer.audio import BLOCK_LENGTH, resampled_length
from tokenizer.codefile import CodeFileHeader, CodeReader, CodeWriter
from tokenizer.model.rows import SignalStream

SECOND = RATE
N = 2 * SECOND + 17
t = np.arange(N) / RATE
SIGNALS = {
    "silence": np.zeros(N),
    "one-sample": np.full(1, 0.5),
    "one-silent-sample": np.zeros(1),
    "two-samples": np.array([1.0, -1.0]),
    "dc": np.ones(N),
    "square": np.sign(np.sin(2 * np.pi * 440 * t) + 1e-9),
    "nyquist": np.where(np.arange(N) % 2, 1.0, -1.0),
    "click": np.eye(1, N, 1000)[0],
    "denormals": np.full(N, 1e-42) * np.where(np.arange(N) % 3, 1.0, -1.0),
    "smallest": np.full(N, np.finfo(np.float32).smallest_subnormal),
    "one-denormal": np.full(1, 1e-44),
    "huge": 1e30 * np.sin(2 * np.pi * 300 * t),
    "largest": np.full(N, np.finfo(np.float32).max),
    "huge-and-tiny": np.where(np.arange(N) == 5, 1e30, 1e-30),
    "silence-then-noise": np.random.default_rng(0).normal(size=N) * (np.arange(N) > N // 2),
    "negative-zero": np.full(N, -0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_at_the_edge(tokenizer, name):
    wave = SIGNALS[name].astype(np.float32)
    for row, decode in (
        (tokenizer.encode_codes(wave, sampling_rate=RATE), tokenizer.decode_codes),
        (tokenizer.encode_latents(wave, sampling_rate=RATE), tokenizer.decode_latents),
    ):
        assert row["num_samples"] == len(wave)
        assert np.isfinite(row["gain"]).all()
        if "codes" in row:
            assert row["codes"].min() >= 0
            assert row["codes"].max() < ENTRIES
        else:
            assert np.isfinite(row["latents"]).all()
        audio, message = outcome(lambda decode=decode, row=row: decode(row))
        if name == "largest" and audio is None:
            # What a decoder makes of it may be a little larger, which no float32 holds.
            assert "float32" in message
            continue
        assert message is None
        assert audio.shape == (1, len(wave))
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        if "silen" in name and "noise" not in name:
            assert np.abs(audio).max() < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, BLOCK_LENGTH, -1])
def test_nan_and_infinity_are_refused_wherever_they_are(tokenizer, bad, place):
    wave = np.zeros(BLOCK_LENGTH + 2, dtype=np.float32)
    wave[place] = bad
    for encode in (tokenizer.encode_codes, tokenizer.encode_latents):
        with pytest.raises(ValueError, match="NaN"):
            encode(wave, sampling_rate=RATE)
    with pytest.raises(REFUSED, match="NaN"):
        tokenizer.encode(torch.from_numpy(wave)[None, None])


@pytest.mark.parametrize(
    "rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000]
)
@pytest.mark.parametrize("samples", [1, 2, 1000, 20_011])
def test_every_rate_and_length(tokenizer, rate, samples):
    wave = (0.1 * np.random.default_rng(rate).normal(size=(2, samples))).astype(np.float32)
    expected = resampled_length(samples, rate, RATE)
    if expected == 0:
        with pytest.raises(ValueError, match="too short"):
            tokenizer.encode_codes(wave, sampling_rate=rate)
        return
    row = tokenizer.encode_codes(wave, sampling_rate=rate)
    assert row["num_samples"] == expected
    assert 0 <= row["codes"].min() <= row["codes"].max() < ENTRIES
    audio = tokenizer.decode_codes(row)
    assert audio.shape == (2, expected)
    assert np.isfinite(audio).all()


def test_a_day_in_bounded_memory():
    # 24 hours of audio, from a generator, through the reader, the resampler and the cut into
    # blocks: every length is right, and no block is large. (Half an hour of networks is measured by
    # tokenizer.benchmarks.memory.)
    seconds, rate, target = 24 * 3600, 100, 80
    block = np.zeros((1, BLOCK_LENGTH), dtype=np.float32)

    def decode():
        left = seconds * rate
        while left:
            yield block[:, : min(left, BLOCK_LENGTH)]
            left -= min(left, BLOCK_LENGTH)

    source = generated_source(decode, rate, target)
    total = 0
    for piece in source.blocks():
        assert piece.shape[-1] <= BLOCK_LENGTH
        total += piece.shape[-1]
    assert total == source.num_samples == seconds * target


def test_a_day_of_codes_in_a_file(tmp_path):
    # At the bundled model's 100 frames a second and one codebook of 2 entries: 8.6 million frames.
    frames, samples = 24 * 3600 * 100, 24 * 3600 * 44_100
    header = CodeFileHeader("0123456789abcdef", 44_100, 441, 1, (2,), chunk_frames=60_000)
    codes = np.arange(50_000)[:, None] % 2
    with CodeWriter(tmp_path / "day.ltk", header) as writer:
        for start in range(0, frames, len(codes)):
            writer.write(codes[: frames - start])
        writer.finish(samples)
    with CodeReader(tmp_path / "day.ltk") as reader:
        assert (reader.header.num_frames, reader.header.num_samples) == (frames, samples)
        lengths = [chunk.shape[1] for chunk in reader.chunks()]
    assert sum(lengths) == frames
    assert max(lengths) == 60_000


def test_numbers_of_frames_and_samples_for_a_day_are_exact():
    autoencoder = make_tokenizer().autoencoder
    for samples in (24 * 3600 * 44_100 + d for d in (-1, 0, 1)):
        frames = autoencoder.num_frames(samples)
        assert autoencoder.num_samples(frames) >= samples > autoencoder.num_samples(frames - 1)
    # Rounded exactly, where 64-bit floats would not be.
    assert resampled_length(2**53 + 1, 3, 1) == (2**53 + 1) // 3


def test_many_blocks_of_a_long_signal_are_those_of_the_whole(tokenizer):
    wave = tone(20.0)
    whole = tokenizer.encode_latents(wave, sampling_rate=RATE)

    def decode():
        for start in range(0, wave.shape[1], 777):
            yield wave[:, start : start + 777]

    source = generated_source(decode)
    signal = SignalStream(tokenizer, source)
    found = torch.cat(list(signal.latents()), dim=-1)[0].T.numpy()
    assert len(found) == -(-wave.shape[1] // HOP) + 1
    np.testing.assert_allclose(found, whole["latents"], atol=1e-4)


def test_a_model_with_weights_that_are_not_finite_is_refused(tmp_path):
    from copy import deepcopy

    from tokenizer.model.latent_tokenizer import LatentTokenizer

    broken = deepcopy(make_tokenizer())
    with torch.no_grad():
        broken.autoencoder.decoder.head.bias[3] = float("nan")
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"autoencoder\.decoder\.head\.bias"):
        LatentTokenizer.from_pretrained(tmp_path)
