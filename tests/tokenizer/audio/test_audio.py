"""Blocks, resampling and writing."""

import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from tokenizer.audio import (
    BLOCK_LENGTH,
    AudioWriter,
    Resampler,
    check_rate,
    open_audio,
    resampled_length,
    write_audio,
    writing,
)

FORMATS = [".wav", ".flac", ".ogg", ".opus", ".mp3"]


def noise(channels, samples, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal((channels, samples))).astype(np.float32)


def tone(frequency, rate, samples, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


def resample(signal, source_rate, target_rate):
    return open_audio(signal, sampling_rate=source_rate, target_rate=target_rate).read()


RATES = [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000, 192000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [13, 1000, BLOCK_LENGTH, BLOCK_LENGTH + 1])
def test_resampled_length_is_exact(rate, samples):
    out = resample(np.zeros(samples, np.float32), rate, 44100)
    assert (
        out.shape
        == (1, round(samples * 44100 / rate))
        == (1, resampled_length(samples, rate, 44100))
    )


def test_resampled_length_at_a_tie_rounds_to_even():
    # 5512.5 samples: soxr gives 5513.
    assert resample(np.ones(1000, np.float32), 8000, 44100).shape == (1, 5512)
    # 1.5 samples: soxr gives 2, which is even.
    assert resample(np.ones(3, np.float32), 16000, 8000).shape == (1, 2)


def test_finish_pads_when_soxr_gives_too_little():
    resampler = Resampler(8000, 16000, 1)
    head = resampler.push(np.ones((1, 1000), np.float32))
    resampler._num_in += 1  # As if soxr had lost a sample.
    tail = resampler.finish()
    assert head.shape[-1] + tail.shape[-1] == 2002
    assert (tail[:, -2:] == 0).all()


@pytest.mark.parametrize("rate", [16000, 48000, 192000])
def test_a_tone_keeps_frequency_level_and_phase(rate):
    samples = rate // 2
    out = resample(tone(1000, rate, samples), rate, 44100)[0]
    expected = tone(1000, 44100, len(out))
    inside = slice(1000, -1000)  # The filter sees silence beyond both ends.
    assert np.abs(out - expected)[inside].max() < 1e-5


def test_a_tone_above_the_new_nyquist_is_removed():
    out = resample(tone(10_000, 48000, 48000), 48000, 16000)[0]
    assert np.abs(out[1000:-1000]).max() < 1e-5


def test_resampling_does_not_depend_on_blocks():
    signal = noise(2, 3 * BLOCK_LENGTH + 17)
    results = []
    for size in (1000, BLOCK_LENGTH, signal.shape[-1]):
        resampler = Resampler(48000, 44100, 2)
        pieces = [resampler.push(signal[:, i : i + size]) for i in range(0, signal.shape[-1], size)]
        results.append(np.concatenate([*pieces, resampler.finish()], axis=-1))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_equal_rates_change_nothing():
    signal = noise(2, BLOCK_LENGTH + 5)
    assert np.array_equal(resample(signal, 44100, 44100), signal)


def test_channels_are_resampled_each_on_its_own():
    signal = noise(3, 5000)
    together = resample(signal, 48000, 44100)
    for channel in range(3):
        assert np.array_equal(together[channel], resample(signal[channel], 48000, 44100)[0])


@pytest.mark.parametrize("target", [44100, 48000])
def test_blocks_make_up_the_whole_again_and_again(target):
    signal = noise(2, 2 * BLOCK_LENGTH + 3)
    source = open_audio(signal, sampling_rate=44100, target_rate=target)
    blocks = list(source.blocks())
    assert len(blocks) >= 3
    assert all(b.dtype == np.float32 and b.shape[0] == 2 and b.shape[1] > 0 for b in blocks)
    assert np.array_equal(np.concatenate(blocks, axis=-1), source.read())
    # Two readers at once do not disturb each other.
    for first, second in zip(source.blocks(), source.blocks(), strict=True):
        assert np.array_equal(first, second)


def test_blocks_may_be_changed_by_the_caller():
    signal = noise(1, 100)
    signal.setflags(write=False)  # As arrays from Arrow are.
    source = open_audio(signal, sampling_rate=8000, target_rate=8000)
    for block in source.blocks():
        block.fill(0)
    assert np.array_equal(source.read(), signal)


def test_num_samples_before_and_after_reading(tmp_path):
    signal = noise(1, BLOCK_LENGTH + 77)
    write_audio(tmp_path / "a.mp3", signal, 48000)
    source = open_audio(tmp_path / "a.mp3", target_rate=44100)
    before = source.num_samples
    assert before == source.read().shape[-1] == source.num_samples
    assert before == resampled_length(signal.shape[-1], 48000, 44100)


def test_downmix_is_the_mean_and_only_on_request():
    signal = noise(6, 1000)
    source = open_audio(signal, sampling_rate=8000, target_rate=8000)
    assert source.num_channels == 6
    mixed = open_audio(signal, sampling_rate=8000, target_rate=8000, downmix=True)
    assert mixed.num_channels == 1
    np.testing.assert_allclose(mixed.read(), signal.mean(axis=0, keepdims=True), atol=1e-7)
    resampled = open_audio(signal, sampling_rate=8000, target_rate=16000, downmix=True)
    np.testing.assert_allclose(
        resampled.read(), resample(signal, 8000, 16000).mean(axis=0, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_sample_that_is_not_finite_is_named(bad):
    signal = np.zeros((2, BLOCK_LENGTH + 100), np.float32)
    signal[1, BLOCK_LENGTH + 10] = bad
    source = open_audio(signal, sampling_rate=8000, target_rate=16000)
    with pytest.raises(ValueError, match=r"array \[2, 65636\] .*sample 65546\b"):
        source.read()


def test_float64_beyond_float32_is_refused():
    source = open_audio(np.array([0.0, 1e300]), sampling_rate=8000, target_rate=8000)
    with pytest.raises(ValueError, match="infinite"):
        source.read()


def test_nothing_left_after_resampling():
    source = open_audio(np.ones(1), sampling_rate=192000, target_rate=8000)
    with pytest.raises(ValueError, match="too short"):
        source.read()


@pytest.mark.parametrize("rate", [0, -8000, 44100.5, float("nan"), float("inf"), True, "8k", None])
def test_absurd_rates(rate):
    with pytest.raises(ValueError, match="positive whole number"):
        check_rate(rate)


@pytest.mark.parametrize(
    "rate", [8000, 8000.0, np.int32(8000), np.float64(8000), torch.tensor(8000)]
)
def test_rates_of_any_numeric_type(rate):
    assert check_rate(rate) == 8000
    assert type(check_rate(rate)) is int


def test_rates_too_far_apart():
    with pytest.raises(ValueError, match=r"\b1 Hz .*44100 Hz"):
        open_audio(np.ones(10), sampling_rate=1, target_rate=44100)


def test_memory_is_bounded(tmp_path):
    rate, minutes = 16000, 10
    with AudioWriter(tmp_path / "long.wav", rate, 1) as writer:
        block = noise(1, 60 * rate)
        for _ in range(minutes):
            writer.write(block)
    tracemalloc.start()
    try:
        source = open_audio(tmp_path / "long.wav", target_rate=24000)
        total = sum(b.shape[-1] for b in source.blocks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == minutes * 60 * 24000
    assert peak < 4 * 2**20  # The whole takes 58 MB.


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_every_format_there_and_back(tmp_path, suffix, channels):
    path = tmp_path / f"a{suffix}"
    signal = np.stack([tone(300 * (c + 1), 48000, 48000, 0.3) for c in range(channels)])
    if suffix == ".mp3" and channels > 2:
        with pytest.raises(ValueError, match=r"a\.mp3.*\b6\b"):
            write_audio(path, signal, 48000)
        assert list(tmp_path.iterdir()) == []
        return
    write_audio(path, signal, 48000)
    result = open_audio(path, target_rate=48000).read()
    assert result.shape == signal.shape
    lossless = suffix in (".wav", ".flac")
    if channels == 6 and not lossless:
        result, signal = result[:5], signal[:5]  # The sixth channel is for the bass only.
    error = np.sqrt(np.mean((result - signal)[:, 2000:-2000] ** 2))
    assert error < (1e-5 if lossless else 0.03)  # The tones' own level is 0.21.
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 96000, 192000])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_at_every_rate(tmp_path, suffix, rate):
    path = tmp_path / f"a{suffix}"
    signal = tone(440, rate, rate // 2, 0.5)[None]
    write_audio(path, signal, rate)
    info = soundfile.info(path)
    own = {".opus": rate == 8000, ".mp3": rate < 50000}.get(suffix, True)
    assert info.samplerate == (rate if own else 48000)
    source = open_audio(path, target_rate=rate)
    assert source.num_samples == signal.shape[-1]
    level = np.sqrt(np.mean(source.read() ** 2))
    assert abs(level - 0.5 / np.sqrt(2)) < 0.02


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_single_sample_in_every_format(tmp_path, suffix):
    write_audio(tmp_path / f"a{suffix}", np.full((1, 1), 0.5, np.float32), 44100)
    assert open_audio(tmp_path / f"a{suffix}", target_rate=44100).read().shape == (1, 1)


def test_integer_formats_clip_and_float_formats_do_not(tmp_path):
    signal = np.array([[-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]], np.float32)
    for name, subtype in (("a.wav", None), ("b.wav", "PCM_24"), ("c.flac", None)):
        write_audio(tmp_path / name, signal, 8000, subtype=subtype)
        result = open_audio(tmp_path / name, target_rate=8000).read()
        np.testing.assert_allclose(result, np.clip(signal, -1, 1), atol=2**-15)
    write_audio(tmp_path / "d.wav", signal, 8000, subtype="FLOAT")
    assert np.array_equal(open_audio(tmp_path / "d.wav", target_rate=8000).read(), signal)


def test_wav_is_16_bit_unless_asked_otherwise(tmp_path):
    write_audio(tmp_path / "a.WAV", noise(1, 10), 8000)
    assert soundfile.info(tmp_path / "a.WAV").subtype == "PCM_16"
    write_audio(tmp_path / "a.WAV", noise(1, 10), 8000, subtype="pcm_24")
    assert soundfile.info(tmp_path / "a.WAV").subtype == "PCM_24"


def test_tensors_and_other_floats_are_written(tmp_path):
    signal = noise(2, 50)
    for i, value in enumerate(
        (torch.from_numpy(signal).requires_grad_(), signal.astype(np.float64))
    ):
        write_audio(tmp_path / f"{i}.wav", value, 8000, subtype="FLOAT")
        assert np.array_equal(open_audio(tmp_path / f"{i}.wav", target_rate=8000).read(), signal)


# Not Vorbis: its encoder's choice of windows depends on the blocks.
@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".ogg"])
def test_blocks_and_whole_give_the_same_file(tmp_path, suffix):
    signal = noise(2, 30_000)
    write_audio(tmp_path / f"whole{suffix}", signal, 44100)
    with AudioWriter(tmp_path / f"blocks{suffix}", 44100, 2) as writer:
        for start in range(0, signal.shape[-1], 777):
            writer.write(signal[:, start : start + 777])
    whole, blocks = (
        open_audio(tmp_path / f"{name}{suffix}", target_rate=44100).read()
        for name in ("whole", "blocks")
    )
    assert np.array_equal(whole, blocks)


def test_a_failure_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.wav"
    old = noise(1, 100)
    write_audio(path, old, 8000, subtype="FLOAT")

    def interrupted():
        with AudioWriter(path, 8000, 1) as writer:
            writer.write(noise(1, 5000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.array_equal(open_audio(path, target_rate=8000).read(), old)
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_ordinary_permissions(tmp_path):
    write_audio(tmp_path / "a.wav", noise(1, 10), 8000)
    (tmp_path / "other").touch()
    assert (tmp_path / "a.wav").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_cannot_be_written(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    good = noise(2, 100)
    cases = [
        (good[0], {}, r"shape \[100\]"),
        (good[None], {}, r"shape \[1, 2, 100\]"),
        (good[:, :0], {}, "no samples"),
        (np.full((1, 10), np.nan), {}, "NaN"),
        (np.full((1, 10), 1e300), {}, "NaN or infinite"),
        (np.zeros((1, 10), np.int16), {}, "int16"),
        (good, {"subtype": "PCM_99"}, "unknown subtype 'PCM_99'"),
    ]
    for signal, options, message in cases:
        with pytest.raises(ValueError, match=message):
            write_audio(path, signal, 8000, **options)
    with pytest.raises(ValueError, match="positive whole number"):
        write_audio(path, good, 0)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ValueError, match=r"'\.m4a'.* \.wav, \.flac"):
        write_audio(tmp_path / "a.m4a", noise(1, 10), 8000)
    with pytest.raises(ValueError, match="''"):
        write_audio(tmp_path / "a", noise(1, 10), 8000)
    with pytest.raises(FileNotFoundError, match="missing"):
        write_audio(tmp_path / "missing" / "a.wav", noise(1, 10), 8000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(ValueError, match=r"folder\.wav"):
        write_audio(tmp_path / "folder.wav", noise(1, 10), 8000)
    with pytest.raises(ValueError, match=r"a\.flac.*9 channels"):
        write_audio(tmp_path / "a.flac", noise(9, 10), 8000)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


def test_blocks_of_another_shape_and_writing_after_the_end(tmp_path):
    writer = AudioWriter(tmp_path / "a.wav", 8000, 2)
    with pytest.raises(RuntimeError, match=r"a\.wav"):
        writer.write(noise(2, 10))
    with writer:
        writer.write(noise(2, 10))
        with pytest.raises(ValueError, match=r"\[1, 10\].*\[2, n\]"):
            writer.write(noise(1, 10))
    with pytest.raises(RuntimeError, match=r"a\.wav"):
        writer.write(noise(2, 10))
    assert soundfile.info(tmp_path / "a.wav").frames == 10


def test_wav_files_stop_before_their_header_would_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_WAV_LIMIT", 100_000)
    with (
        pytest.raises(ValueError, match=r"4 GiB.*\.flac"),
        AudioWriter(tmp_path / "a.wav", 8000, 1) as writer,
    ):
        writer.write(noise(1, 60_000))
    assert list(tmp_path.iterdir()) == []
    write_audio(tmp_path / "a.flac", noise(1, 60_000), 8000)


@pytest.mark.parametrize(
    ("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("FLOAT", 32)]
)
def test_wav_files_that_get_too_long_are_refused_at_the_start(tmp_path, monkeypatch, subtype, bits):
    monkeypatch.setattr(writing, "_WAV_LIMIT", 60_000 * bits // 8)
    path, options = tmp_path / "a.wav", {"subtype": subtype}
    with pytest.raises(ValueError, match=r"a\.wav .*4 GiB.*\.flac"):
        AudioWriter(path, 8000, 2, num_samples=30_001, **options)
    AudioWriter(path, 8000, 2, num_samples=30_000, **options)
    AudioWriter(tmp_path / "a.flac", 8000, 2, num_samples=30_001)
    with pytest.raises(ValueError, match="4 GiB"):
        write_audio(path, noise(2, 30_001), 8000, **options)


@pytest.mark.parametrize(
    ("suffix", "bits", "subtype"),
    [
        (".wav", 8, "PCM_U8"),
        (".wav", 16, "PCM_16"),
        (".wav", 24, "PCM_24"),
        (".wav", 32, "PCM_32"),
        (".flac", 8, "PCM_S8"),
        (".flac", 16, "PCM_16"),
        (".flac", 24, "PCM_24"),
    ],
)
def test_integer_formats_round_to_the_nearest_step(tmp_path, suffix, bits, subtype):
    signal = noise(2, 5000)
    write_audio(tmp_path / f"a{suffix}", signal, 8000, subtype=subtype)
    result = soundfile.read(tmp_path / f"a{suffix}", dtype="float64")[0].T
    assert np.abs(result - signal).max() <= 2.0**-bits  # Half a step.


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_an_error_and_leaves_nothing_wherever_it_fills(tmp_path, suffix):
    # Most encoders of libsndfile do not tell when a write fails, nor does closing.
    resource = pytest.importorskip("resource")
    signal, path = noise(1, 20_000), tmp_path / f"a{suffix}"
    write_audio(path, signal, 48_000)
    size = path.stat().st_size
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in [0, 1, 5000, *range(size - 1, 0, -size // 40)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(room, size - 1), limits[1]))
        try:
            with pytest.raises(OSError, match="disk"):
                write_audio(path, signal, 48_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []
