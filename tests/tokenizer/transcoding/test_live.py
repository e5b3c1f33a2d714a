"""Pipes: audio in, codes out, and back, as it comes."""

import io
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
import soundfile
from models import HOP, RATE, read_row, tone

from tokenizer import CodeFileError
from tokenizer.audio.pcm import PcmFormat, PcmReader, WavPipe
from tokenizer.transcoding.piping import decode_live, encode_live

GAIN = 0.06


class Pipe(io.BytesIO):
    """A stream that cannot seek, and gives little at a time."""

    def seekable(self) -> bool:
        return False

    def read1(self, size: int = -1, /) -> bytes:
        return super().read1(min(size, 999))


def wav(wave: np.ndarray, subtype: str = "FLOAT", rate: int = RATE) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave.T, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize("channels", [1, 2])
def test_live_codes_and_audio_are_those_of_the_file(tokenizer, tmp_path, channels):
    wave = tone(2.0 + 5 / RATE, channels=channels)
    out = io.BytesIO()
    seconds = encode_live(tokenizer, Pipe(wav(wave)), out, gain=GAIN, n_codebooks=3, chunk_frames=7)
    assert seconds == pytest.approx(wave.shape[1] / RATE)
    row = tokenizer.encode_codes(wave, sampling_rate=RATE, n_codebooks=3, gain=GAIN)
    again = read_row(io.BytesIO(out.getvalue()), tokenizer)
    for name in row:
        np.testing.assert_array_equal(again[name], row[name])
    # And back: to a file, as exactly as the whole is decoded, and to a pipe in 16 bits.
    decode_live(tokenizer, Pipe(out.getvalue()), tmp_path / "out.wav", subtype="FLOAT")
    decoded, _ = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)
    expected = tokenizer.decode_codes(row)
    np.testing.assert_array_equal(decoded.T, expected)
    piped = io.BytesIO()
    decode_live(tokenizer, io.BytesIO(out.getvalue()), piped)
    reader = PcmReader(io.BytesIO(piped.getvalue()))
    assert reader.pcm == PcmFormat(RATE, channels, "s16le")
    samples = np.concatenate(list(reader), axis=1)
    np.testing.assert_allclose(samples, expected, atol=0.51 / 2**15)
    assert samples.shape == wave.shape


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 3])
def test_wav_is_read_as_libsndfile_reads_it(subtype, channels):
    data = wav(tone(0.05, channels=channels), subtype)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    reader = PcmReader(Pipe(data))
    assert (reader.pcm.sampling_rate, reader.pcm.num_channels) == (RATE, channels)
    np.testing.assert_array_equal(np.concatenate(list(reader), axis=1), expected.T)


def test_raw_samples_and_what_follows_the_data():
    pcm = PcmFormat.parse("8000:2:s16le")
    assert pcm == PcmFormat(8000, 2)
    assert PcmFormat.parse("44100") == PcmFormat(44_100, 1, "s16le")
    integers = np.arange(-6, 6, dtype="<i2").reshape(-1, 2)
    found = np.concatenate(list(PcmReader(Pipe(integers.tobytes()), pcm)), axis=1)
    np.testing.assert_array_equal(found, integers.T.astype(np.float32) / 2**15)
    # A chunk after the samples is none of them; a length that is not known goes to the end.
    data = wav(tone(0.01), "PCM_16")
    known = np.concatenate(list(PcmReader(Pipe(data + b"LIST\4\0\0\0abcd"))), axis=1)
    assert known.shape == (1, 80)
    place = data.index(b"data") + 4
    for size in (0, 2**31 - 36, 2**32 - 1):
        endless = data[:place] + struct.pack("<I", size) + data[place + 4 :]
        assert np.concatenate(list(PcmReader(Pipe(endless))), axis=1).shape == (1, 80)


def test_bad_streams_are_refused(tokenizer, tmp_path):
    for data, message in (
        (b"", "WAV"),
        (b"fLaC" + bytes(40), "WAV"),
        (wav(tone(0.01), "PCM_U8"), "8 bits"),
        (wav(tone(1.0), "PCM_16")[:-10], r"\b10 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_live(tokenizer, Pipe(data), tmp_path / "a.ltk", gain=GAIN)
    for text in ("", "x", "8000:1:s16le:9", "8000:1:u8", "0:1", "8000:0"):
        with pytest.raises(ValueError):  # noqa: PT011 -- each has a message of its own
            PcmFormat.parse(text)
    out = io.BytesIO()
    encode_live(tokenizer, Pipe(wav(tone(1.0))), out, gain=GAIN)
    whole = out.getvalue()
    with pytest.raises(CodeFileError, match="truncated"):
        decode_live(tokenizer, Pipe(whole[:-30]), tmp_path / "b.wav")
    with pytest.raises(ValueError, match=r"n_codebooks=9"):
        decode_live(tokenizer, Pipe(whole), tmp_path / "b.wav", n_codebooks=9)
    assert list(tmp_path.iterdir()) == []


def test_codes_leave_before_the_audio_has_ended(tokenizer):
    read, write = os.pipe()
    out = io.BytesIO()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb", buffering=0) as sink:
        pcm = PcmFormat(RATE, 1, "f32le")
        options = {"gain": GAIN, "pcm": pcm, "chunk_frames": 5}
        thread = threading.Thread(
            target=encode_live, args=(tokenizer, source, out), kwargs=options, daemon=True
        )
        thread.start()
        header = None
        wave = tone(1.0).astype("<f4").tobytes()
        for start in range(0, len(wave), 4 * HOP):
            sink.write(wave[start : start + 4 * HOP])
        # All but what the latency and a record hold back arrives without an end.
        deadline = threading.Event()
        for _ in range(600):
            header = out.getvalue()
            if len(header) > 100:
                break
            deadline.wait(0.1)
        assert header is not None
        assert len(header) > 100
        assert thread.is_alive()
        sink.close()
        thread.join(timeout=120)
    assert read_row(io.BytesIO(out.getvalue()), tokenizer)["num_samples"] == RATE


def test_a_wav_pipe_rounds_and_clips():
    stream = io.BytesIO()
    with WavPipe(stream, 8000, 1) as pipe:
        pipe.write(np.array([[0.0, 2.0, -2.0, 0.6 / 2**15]], dtype=np.float32))
    data = np.frombuffer(stream.getvalue()[-8:], dtype="<i2")
    assert data.tolist() == [0, 2**15 - 1, -(2**15), 1]


@pytest.mark.slow
def test_the_command_line_takes_pipes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    wave = tone(0.5)
    latok = [sys.executable, "-m", "tokenizer"]
    model = ["--model", str(tmp_path / "model")]
    done = subprocess.run(
        [*latok, "encode", "-", "-", "--gain", str(GAIN), *model],
        input=wav(wave),
        capture_output=True,
        check=True,
    )
    row = tokenizer.encode_codes(wave, sampling_rate=RATE, gain=GAIN)
    np.testing.assert_array_equal(
        read_row(io.BytesIO(done.stdout), tokenizer)["codes"], row["codes"]
    )
    done = subprocess.run(
        [*latok, "decode", "-", "-", *model], input=done.stdout, capture_output=True, check=True
    )
    samples = np.concatenate(list(PcmReader(io.BytesIO(done.stdout))), axis=1)
    np.testing.assert_allclose(samples, tokenizer.decode_codes(row), atol=0.51 / 2**15)


def test_the_command_line_without_gain_reads_the_pipe_to_its_end(tokenizer, tmp_path, monkeypatch):
    from tokenizer.cli import main

    tokenizer.save_pretrained(tmp_path / "model")
    wave = tone(0.5)
    stdin = io.TextIOWrapper(io.BytesIO(wav(wave)))
    monkeypatch.setattr(sys, "stdin", stdin)
    arguments = ["--model", str(tmp_path / "model")]
    assert main(["encode", "-", str(tmp_path / "a.ltk"), *arguments]) == 0
    row = tokenizer.encode_codes(wave, sampling_rate=RATE)
    np.testing.assert_array_equal(read_row(tmp_path / "a.ltk", tokenizer)["codes"], row["codes"])
    assert main(["encode", "-", "--raw", "8000", *arguments]) == 2
