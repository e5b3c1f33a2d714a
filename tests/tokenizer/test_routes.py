"""All routes agree: a clip has the same codes and the same decoded samples whichever way it takes.

This holds the table of docs/exactness.md on one CPU: equality is of bits. The rooms test their part
more closely: chunks in networks/test_stepping.py, forms of input in audio/test_inputs.py, threads
and processes in model/test_determinism.py, exported graphs in export/test_onnx.py.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models import RATE, make_stereo_autoencoder, make_tokenizer, read_row, tone

from tokenizer import LatentTokenizer, cli
from tokenizer.audio import write_audio
from tokenizer.transcoding.files import decode_file, encode_file
from tokenizer.transcoding.piping import decode_live, encode_live

GAIN = 0.07  # A stream cannot know the level of what comes, so all routes are given the same.

# A route gives codes [C * T, K] and decoded samples [C, N] of an array [C, N].
Route = Callable[[LatentTokenizer, np.ndarray, Path], tuple[np.ndarray, np.ndarray]]


def array(tokenizer: LatentTokenizer, wave: np.ndarray, _: Path):
    row = tokenizer.encode_codes(wave, sampling_rate=RATE, gain=GAIN)
    return row["codes"], tokenizer.decode_codes(row)


def wav(wave: np.ndarray, folder: Path) -> Path:
    write_audio(folder / "clip.wav", wave, RATE, subtype="FLOAT")
    return folder / "clip.wav"


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


def file(tokenizer: LatentTokenizer, wave: np.ndarray, folder: Path):
    row = tokenizer.encode_codes(wav(wave, folder), gain=GAIN)
    return row["codes"], tokenizer.decode_codes(row)


def batch_of_two(tokenizer: LatentTokenizer, wave: np.ndarray, _: Path):
    clips = [tone(0.3, seed=9), wave]
    rows = tokenizer.encode_codes(clips, sampling_rate=RATE, gain=GAIN)
    return rows["codes"][1], tokenizer.decode_codes(rows)[1]


def padded_tensors(tokenizer: LatentTokenizer, wave: np.ndarray, _: Path):
    channels, samples = wave.shape
    padded = torch.full((channels + 1, 1, samples + 500), 3.0)
    padded[:channels, 0, :samples] = torch.from_numpy(wave)
    mask = torch.ones(channels + 1, samples + 500, dtype=torch.bool)
    mask[:channels, samples:] = False
    encoded = tokenizer.encode(padded, mask, gain=torch.full((channels + 1,), GAIN))
    frames = tokenizer.autoencoder.num_frames(samples)
    codes = tokenizer.quantize(encoded.latents)[:channels, :, :frames]
    audio = tokenizer.decode(
        tokenizer.dequantize(codes),
        decoder=tokenizer.codes_decoder,
        n_codebooks=codes.shape[1],
        gain=encoded.gain[:channels],
    )
    return codes.transpose(1, 2).flatten(0, 1).numpy(), audio[:, 0, :samples].numpy()


def blocks(tokenizer: LatentTokenizer, wave: np.ndarray, _: Path):
    pieces = torch.from_numpy(wave / np.float32(GAIN))[:, None].split(1777, dim=-1)
    latents = torch.cat(list(tokenizer.encode_stream(pieces)), dim=-1)
    codes = tokenizer.quantize(latents)
    decoded = tokenizer.decode_stream(
        tokenizer.dequantize(codes).split(13, dim=-1), tokenizer.codes_decoder, codes.shape[1]
    )
    audio = torch.cat(list(decoded), dim=-1)[:, 0, : wave.shape[1]] * np.float32(GAIN)
    return codes.transpose(1, 2).flatten(0, 1).numpy(), audio.numpy()


def stream(tokenizer: LatentTokenizer, wave: np.ndarray, _: Path):
    encoder = tokenizer.stream_encoder(gain=GAIN, num_channels=len(wave))
    decoder = tokenizer.stream_decoder(gain=GAIN, num_channels=len(wave))
    chunks = np.split(wave, range(0, wave.shape[1], 997), axis=1)
    codes = [*map(encoder.push, chunks), encoder.finish()]
    audio = np.concatenate([*map(decoder.push, codes), decoder.finish()], axis=1)
    return np.concatenate(codes, axis=1).reshape(-1, codes[0].shape[-1]), audio[:, : wave.shape[1]]


def code_file(tokenizer: LatentTokenizer, wave: np.ndarray, folder: Path):
    encode_file(tokenizer, wav(wave, folder), folder / "clip.ltk", gain=GAIN)
    decode_file(tokenizer, folder / "clip.ltk", folder / "out.wav", subtype="FLOAT")
    return read_row(folder / "clip.ltk", tokenizer)["codes"], read(folder / "out.wav")


def pipe(tokenizer: LatentTokenizer, wave: np.ndarray, folder: Path):
    codes = io.BytesIO()
    encode_live(tokenizer, io.BytesIO(wav(wave, folder).read_bytes()), codes, gain=GAIN)
    decode_live(tokenizer, io.BytesIO(codes.getvalue()), folder / "out.wav", subtype="FLOAT")
    return read_row(io.BytesIO(codes.getvalue()), tokenizer)["codes"], read(folder / "out.wav")


def mapped(tokenizer: LatentTokenizer, wave: np.ndarray, folder: Path, batched: bool = False):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"audio": [str(wav(wave, folder))] * 2})
    data = data.map(partial(tokenizer.encode_codes, gain=GAIN), batched=batched)
    return np.array(data[1]["codes"]), tokenizer.decode_codes(data[1])


def saved_and_loaded(tokenizer: LatentTokenizer, wave: np.ndarray, folder: Path):
    tokenizer.save_pretrained(folder / "model")
    return array(LatentTokenizer.from_pretrained(folder / "model"), wave, folder)


ROUTES: dict[str, Route] = {
    "file": file,
    "batch of two": batch_of_two,
    "padded tensors": padded_tensors,
    "blocks": blocks,
    "stream": stream,
    "code file": code_file,
    "pipe": pipe,
    "Dataset.map": mapped,
    "Dataset.map in batches": partial(mapped, batched=True),
    "saved and loaded": saved_and_loaded,
}
BY_CHANNEL = ("padded tensors", "blocks")  # give each channel a row of its own
CLIPS = {  # seconds and channels
    "one sample": (1 / RATE, 1),
    "stereo": (1.3 + 7 / RATE, 2),
    "several blocks": (12.3, 1),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("route", ROUTES)
def test_routes_agree(beam_tokenizer, tmp_path, route, clip):
    seconds, channels = CLIPS[clip]
    wave = tone(seconds, channels=channels)
    codes, audio = array(beam_tokenizer, wave, tmp_path)
    assert audio.shape == wave.shape
    other_codes, other_audio = ROUTES[route](beam_tokenizer, wave, tmp_path)
    np.testing.assert_array_equal(other_codes, codes)
    np.testing.assert_array_equal(other_audio, audio)


@pytest.fixture(scope="module")
def stereo_tokenizer() -> LatentTokenizer:
    return make_tokenizer(make_stereo_autoencoder())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("route", [name for name in ROUTES if name not in BY_CHANNEL])
def test_routes_agree_for_a_stereo_model(stereo_tokenizer, tmp_path, route, channels):
    wave = tone(1.3 + 7 / RATE, channels=channels)
    codes, audio = array(stereo_tokenizer, wave, tmp_path)
    assert audio.shape == wave.shape
    other_codes, other_audio = ROUTES[route](stereo_tokenizer, wave, tmp_path)
    np.testing.assert_array_equal(other_codes, codes)
    np.testing.assert_array_equal(other_audio, audio)


def test_the_command_line_agrees(beam_tokenizer, tmp_path):
    wave = tone(1.3, channels=2)
    codes, audio = array(beam_tokenizer, wave, tmp_path)
    beam_tokenizer.save_pretrained(tmp_path / "model")
    model = ["--model", str(tmp_path / "model")]
    names = [str(wav(wave, tmp_path)), str(tmp_path / "a.ltk"), str(tmp_path / "out.wav")]
    assert cli.main(["encode", *names[:2], "--gain", str(GAIN), *model]) == 0
    assert cli.main(["decode", *names[1:], *model]) == 0
    np.testing.assert_array_equal(read_row(names[1], beam_tokenizer)["codes"], codes)
    # The file has 16 bits.
    np.testing.assert_allclose(read(tmp_path / "out.wav"), audio, atol=0.51 / 2**15)
