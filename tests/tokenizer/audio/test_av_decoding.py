"""Files that libsndfile cannot read, or reads in part, come in whole or are refused by name."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from odd_audio import flac_of, of_unknown_length, without_first_frame

from tokenizer.audio import AudioFile

av = pytest.importorskip("av")
RATE = 48_000


def sound(seconds, seed=0):
    level = np.linspace(0.5, 0.0, round(seconds * RATE)) ** 2
    return (np.random.default_rng(seed).normal(size=len(level)) * level * 0.3).astype(np.float32)


def encode(path, codec, samples, container=None):
    options = {"movflags": "faststart"} if container else {}
    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = 128_000
        for start in range(0, len(samples), 1024):
            piece = samples[None, start : start + 1024]
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def decoded(file):
    signal = AudioFile(file) if isinstance(file, Path) else AudioFile(file, "bytes")
    whole = np.concatenate(list(signal.blocks()), axis=1)
    assert whole.shape == (signal.info().num_channels, signal.info().num_samples)
    middle = whole.shape[1] // 2
    assert np.allclose(signal.read(middle, 999), whole[:, middle : middle + 999], atol=1e-5)
    return whole[0]


@pytest.mark.parametrize(
    ("name", "codec", "close"),
    [("a.m4a", "aac", False), ("a.m4a", "alac", True), ("a.webm", "libopus", False),
     ("a.wma", "wmav2", False), ("a.mkv", "aac", False)],
)  # fmt: skip
def test_formats_of_ffmpeg(tmp_path, name, codec, close):
    signal = sound(1.0)
    path = encode(tmp_path / name, codec, signal)
    for file in (path, path.read_bytes()):
        result = decoded(file)
        assert abs(len(result) - len(signal)) <= 4096  # What the container says of padding.
        n = min(len(result), len(signal))
        if close:
            assert np.abs(result[:n] - signal[:n]).max() < 2**-14


def test_a_cut_off_mp4_is_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", "aac", sound(2.0), "mp4")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4"):
        decoded(path)


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III"), ("flac", "PCM_16")],
)
def test_joined_files_are_read_whole(tmp_path, suffix, subtype):
    form = {"opus": "OGG"}.get(suffix, suffix).upper()
    parts = []
    for seed, seconds in enumerate((1.0, 2.0)):
        path = tmp_path / f"{seed}.{suffix}"
        soundfile.write(path, sound(seconds, seed), RATE, format=form, subtype=subtype)
        parts.append(path.read_bytes())
        assert abs(len(decoded(path)) - seconds * RATE) < 1
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(parts))
    assert abs(len(decoded(joined)) - 3 * RATE) <= 5 * 1152
    # A file that is replaced by another one is looked at anew.
    path.write_bytes(joined.read_bytes())
    assert abs(len(decoded(path)) - 3 * RATE) <= 5 * 1152


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "AIFF", "RF64", "W64", "AU", "CAF"])
@pytest.mark.parametrize("endian", ["FILE", "LITTLE"])
def test_joined_files_without_compression_are_refused(tmp_path, form, endian):
    if not soundfile.check_format(form, "PCM_16", endian):
        pytest.skip("no such files")
    path = tmp_path / "joined.wav"
    soundfile.write(path, sound(1.0), RATE, format=form, subtype="PCM_16", endian=endian)
    assert len(decoded(path)) == RATE
    path.write_bytes(2 * path.read_bytes())
    for file in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=r"joined\.wav|bytes") as error:
            decoded(file)
        if form in ("RF64", "W64", "AU", "CAF"):
            assert "several files were joined" in str(error.value)


def test_mp3_that_does_not_tell_its_length(tmp_path):
    path = tmp_path / "a.mp3"
    signal = sound(20.0)
    soundfile.write(
        path, signal, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3
    )
    path.write_bytes(without_first_frame(path.read_bytes()))
    assert abs(soundfile.info(path).frames - len(signal)) > RATE  # libsndfile guesses.
    assert abs(len(decoded(path)) - len(signal)) <= 5 * 1152


@pytest.mark.parametrize("bits", [8, 12, 15, 16, 17, 20, 24, 32])
def test_flac_of_any_width(tmp_path, bits):
    x = sound(0.2).clip(-0.9, 0.9)
    (tmp_path / "a.flac").write_bytes(
        flac_of([round(v * 2.0 ** (bits - 1)) for v in x], RATE, bits)
    )
    np.testing.assert_allclose(decoded(tmp_path / "a.flac"), x, atol=2.0 ** -min(bits, 24))


def test_flac_in_ogg(tmp_path):
    x = sound(0.2).clip(-0.9, 0.9)
    with av.open(tmp_path / "a.oga", "w", format="ogg") as container:
        stream = container.add_stream("flac", rate=RATE)
        stream.format, stream.layout = "s16", "mono"
        for start in range(0, len(x), 4096):
            piece = np.int16(x[None, start : start + 4096] * 2**15)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(decoded(tmp_path / "a.oga"), x, atol=2**-14)


def test_flac_of_unknown_length(tmp_path):
    path = tmp_path / "a.flac"
    signal = sound(1.0)
    soundfile.write(path, signal, RATE)
    expected = decoded(path)
    path.write_bytes(of_unknown_length(path.read_bytes()))
    assert np.array_equal(decoded(path), expected)


def test_without_pyav_nothing_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for seed in range(2):
        soundfile.write(tmp_path / f"{seed}.ogg", sound(0.5, seed), RATE)
    joined = tmp_path / "joined.ogg"
    joined.write_bytes(b"".join((tmp_path / f"{seed}.ogg").read_bytes() for seed in range(2)))
    (tmp_path / "a.m4a").write_bytes(bytes(1000))
    for path in (joined, tmp_path / "a.m4a"):
        with pytest.raises(ValueError, match=rf"{path.name}.*latent-tokenizer\[av\]"):
            decoded(path)
