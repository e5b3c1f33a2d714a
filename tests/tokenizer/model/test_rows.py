import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from models import CODEBOOKS, DIM, HOP, RATE, tone

from tokenizer import LatentTokenizer
from tokenizer.audio import write_audio

datasets = pytest.importorskip("datasets")
SLOW = pytest.mark.slow


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def clip(length: int, channels: int = 1, seed: int = 0) -> dict:
    wave = tone(1.0, channels=channels, seed=seed)[:, :length]
    return {"array": wave, "sampling_rate": RATE}


def test_schema(tokenizer):
    row = tokenizer.encode_codes(clip(1000))
    frames = tokenizer.autoencoder.num_frames(1000)
    assert row["codes"].shape == (frames, CODEBOOKS)
    assert row["codes"].dtype == np.int16
    assert (row["num_samples"], row["num_channels"]) == (1000, 1)
    assert row["gain"].shape == (1,)
    row = tokenizer.encode_latents(clip(1000))
    assert row["latents"].shape == (frames, DIM)
    assert row["latents"].dtype == np.float32


AROUND_FRAMES = sorted({n * HOP + d for n in range(4) for d in (-1, 0, 1)} - {-1, 0})


@pytest.mark.parametrize(
    ("lengths", "channels"),
    [
        (AROUND_FRAMES, 1),
        (AROUND_FRAMES[::3], 3),
        pytest.param(range(1, 3 * HOP + 1), 1, marks=SLOW, id="all"),
    ],
)
def test_length_is_kept(tokenizer, lengths, channels):
    for length in lengths:
        wave = clip(length, channels)
        out = tokenizer.decode_codes(tokenizer.encode_codes(wave))
        assert out.shape == (channels, length)
        assert out.dtype == np.float32
        assert tokenizer.decode_latents(tokenizer.encode_latents(wave)).shape == (channels, length)


def test_codes_are_the_quantized_latents(tokenizer, beam_tokenizer):
    for model in (tokenizer, beam_tokenizer):
        for n in (1, 3, CODEBOOKS):
            row = model.encode_codes(clip(8000, 2), n_codebooks=n)
            latents = model.encode_latents(clip(8000, 2))
            assert same(model.latents_to_codes(latents, n_codebooks=n), row)
            z = torch.from_numpy(latents["latents"]).reshape(2, -1, DIM).transpose(1, 2)
            codes = model.quantize(z, n).transpose(1, 2).flatten(0, 1).numpy()
            assert np.array_equal(codes, row["codes"])


def test_rows_agree_with_tensors(tokenizer):
    wave = clip(5000)
    row = tokenizer.encode_codes(wave)
    encoded = tokenizer.encode(torch.from_numpy(wave["array"])[None])
    codes = tokenizer.quantize(encoded.latents)
    assert np.array_equal(codes[0].T.numpy(), row["codes"])
    audio = tokenizer.decode(
        tokenizer.dequantize(codes), decoder="finetuned", n_codebooks=CODEBOOKS, gain=encoded.gain
    )
    np.testing.assert_array_equal(audio[0, :, :5000].numpy(), tokenizer.decode_codes(row))


def test_every_channel_is_coded_as_if_alone(tokenizer):
    stereo = clip(3000, 2)
    stereo["array"] = stereo["array"] * np.float32([[1], [0.01]])
    row = tokenizer.encode_codes(stereo)
    audio = tokenizer.decode_codes(row)
    for i in range(2):
        mono = {"array": stereo["array"][i], "sampling_rate": RATE}
        alone = tokenizer.encode_codes(mono)
        assert np.array_equal(np.split(row["codes"], 2)[i], alone["codes"])
        assert row["gain"][i] == alone["gain"][0]
        assert np.array_equal(audio[i : i + 1], tokenizer.decode_codes(alone))
    mixed = tokenizer.encode_codes(stereo, downmix=True)
    mean = {"array": stereo["array"].mean(0), "sampling_rate": RATE}
    assert same(mixed, tokenizer.encode_codes(mean))


def test_batches_equal_singles(tokenizer):
    clips = [clip(length, seed=length) for length in (1, 500, 8000, 333)]
    batch = tokenizer.encode_codes(clips)
    singles = [tokenizer.encode_codes(one) for one in clips]
    for i, single in enumerate(singles):
        assert same({k: v[i] for k, v in batch.items()}, single)
    audio = tokenizer.decode_codes(batch)
    for one, single in zip(audio, singles, strict=True):
        assert np.array_equal(one, tokenizer.decode_codes(single))
    again = tokenizer.decode_codes(singles)
    assert all(np.array_equal(a, b) for a, b in zip(audio, again, strict=True))


def test_all_input_forms_give_the_same_codes(tokenizer, tmp_path):
    path = tmp_path / "clip.wav"
    write_audio(path, tone(0.5), RATE, subtype="FLOAT")
    wanted = tokenizer.encode_codes(path)
    wave, _ = soundfile.read(path, dtype="float32")
    forms = [
        str(path),
        path.read_bytes(),
        {"array": wave, "sampling_rate": RATE},
        {"path": str(path), "bytes": None},
        {"path": None, "bytes": path.read_bytes()},
        {"audio": str(path)},
        {"audio": {"array": wave.tolist(), "sampling_rate": RATE}, "label": 3},
    ]
    for form in forms:
        assert same(tokenizer.encode_codes(form), wanted), form
    assert same(tokenizer.encode_codes(wave, sampling_rate=RATE), wanted)
    assert same(tokenizer.encode_codes(torch.from_numpy(wave), sampling_rate=RATE), wanted)


def test_resampled_when_the_rate_is_known_and_refused_when_not(tokenizer):
    wave = tone(0.5, rate=44_100)
    row = tokenizer.encode_codes({"array": wave, "sampling_rate": 44_100})
    assert row["num_samples"] == RATE // 2
    with pytest.raises(ValueError, match="sampling_rate"):
        tokenizer.encode_codes(wave)


def test_rates(tokenizer):
    wave = clip(2000)
    row = tokenizer.encode_codes(wave)
    assert same(
        tokenizer.encode_codes(wave, bitrate=tokenizer.bitrate(2)),
        tokenizer.encode_codes(wave, n_codebooks=2),
    )
    # Greedy codes: those of fewer codebooks begin those of more, and any prefix decodes.
    for n in range(1, CODEBOOKS + 1):
        prefix = row | {"codes": row["codes"][:, :n]}
        assert same(tokenizer.encode_codes(wave, n_codebooks=n), prefix)
        assert tokenizer.decode_codes(prefix).shape == (1, 2000)


def test_decoder_can_be_overridden(tokenizer):
    row = tokenizer.encode_codes(clip(2000))
    finetuned = tokenizer.decode_codes(row)
    assert np.array_equal(finetuned, tokenizer.decode_codes(row, decoder="finetuned"))
    assert not np.allclose(finetuned, tokenizer.decode_codes(row, decoder="continuous"))


def test_bare_codes_and_latents_decode_at_the_default_level(tokenizer):
    row = tokenizer.encode_codes(clip(2000))
    bare = tokenizer.decode_codes(row["codes"])
    assert bare.shape == (1, tokenizer.autoencoder.num_samples(len(row["codes"])))
    np.testing.assert_allclose(
        bare[:, :2000] * row["gain"][:, None] / tokenizer.config.default_gain,
        tokenizer.decode_codes(row),
        rtol=1e-4,
        atol=1e-7,
    )
    latents = tokenizer.encode_latents(clip(2000))["latents"]
    assert tokenizer.decode_latents(torch.from_numpy(latents)).shape == bare.shape


def test_silence_stays_silent(tokenizer):
    silent = {"array": np.zeros((2, 1000), np.float32), "sampling_rate": RATE}
    out = tokenizer.decode_codes(tokenizer.encode_codes(silent))
    assert np.abs(out).max() < 1e-3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"num_samples": 3}, "'codes'"),
        ({"codes": np.zeros((2, 3, 4), int)}, r"\(2, 3, 4\)"),
        ({"codes": np.zeros((3, 2), int), "num_samples": 99_999}, "99999.*160"),
        ({"codes": np.zeros((3, 2), int), "num_channels": 2}, r"\b3 frames.*\b2\b"),
        ({"codes": np.zeros((0, 2), int)}, "0 frames"),
        ({"codes": np.full((3, 2), 99)}, "99"),
    ],
)
def test_bad_rows_are_refused(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode_codes(row)


# Dataset.map ---------------------------------------------------------------------------------


def audio_files(folder, count: int = 5) -> list[str]:
    paths = []
    for i in range(count):
        path = folder / f"{i}.wav"
        write_audio(path, tone(0.2 + 0.1 * i, channels=1 + i % 2, seed=i), RATE)
        paths.append(str(path))
    return paths


def dataset_of(form: str, folder) -> "datasets.Dataset":
    paths = audio_files(folder)
    if form == "paths":
        return datasets.Dataset.from_dict({"audio": paths, "label": list(range(5))})
    if form == "bytes":
        data = datasets.Dataset.from_dict({"audio": paths, "label": list(range(5))})
        return data.cast_column("audio", datasets.Audio(decode=False))
    rows = []
    for path in paths:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        rows.append({"array": wave.T.tolist(), "sampling_rate": rate})
    return datasets.Dataset.from_dict({"audio": rows, "label": list(range(5))})


@pytest.mark.parametrize(
    "form", [pytest.param("paths", marks=SLOW), "bytes", pytest.param("arrays", marks=SLOW)]
)
def test_dataset_map(tokenizer, tmp_path, form):
    data = dataset_of(form, tmp_path)
    rows = data.map(tokenizer.encode_codes)
    batched = data.map(tokenizer.encode_codes, batched=True, batch_size=2)
    assert set(rows.column_names) == {
        "audio",
        "label",
        "codes",
        "num_samples",
        "num_channels",
        "gain",
    }
    assert rows.features["codes"].feature.feature.dtype == "int16"
    for i in range(len(data)):
        wanted = tokenizer.encode_codes(str(tmp_path / f"{i}.wav"))
        for found in (rows[i], batched[i]):
            assert np.array_equal(found["codes"], wanted["codes"])
            assert found["num_samples"] == wanted["num_samples"]
            audio = tokenizer.decode_codes(found)
            assert np.array_equal(audio, tokenizer.decode_codes(wanted))
    decoded = tokenizer.decode_codes(batched[:3])
    assert [a.shape[-1] for a in decoded] == batched["num_samples"][:3]


MAP_SCRIPT = """
import sys
import datasets, torch
from tokenizer import load_tokenizer
model, folder, workers = sys.argv[1:]
torch.set_num_threads(2)
torch.ones(300, 300) @ torch.ones(300, 300)  # the parent's thread pool exists before the fork
tokenizer = load_tokenizer(model)
data = datasets.load_from_disk(folder)
n = int(workers)
for batched in (False, True):
    mapped = data.map(tokenizer.encode_codes, batched=batched, batch_size=2, num_proc=n or None)
    print(len(mapped), sum(sum(map(sum, row)) for row in mapped["codes"]))
print(len(data.cache_files) + len(list(__import__("pathlib").Path(folder).glob("cache-*"))))
"""


@pytest.mark.slow
def test_dataset_map_in_processes_and_from_the_cache_of_another(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "audio").mkdir()
    dataset_of("paths", tmp_path / "audio").save_to_disk(tmp_path / "data")

    def run(workers: int) -> list[str]:
        command = [
            sys.executable,
            "-c",
            MAP_SCRIPT,
            str(tmp_path / "model"),
            str(tmp_path / "data"),
            str(workers),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout.split()

    once = run(0)
    caches = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("cache-*")}
    assert len(caches) == 2  # one a map
    assert run(0) == once
    # Nothing was computed again: the same files, untouched.
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").glob("cache-*")} == caches
    for path in caches:
        path.unlink()
    workers = run(2)
    assert workers[:4] == once[:4]
    # Other weights are a miss.
    other = LatentTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        other.autoencoder.encoder.head.bias += 0.3
    other.save_pretrained(tmp_path / "model")
    before = list((tmp_path / "data").glob("cache-*"))
    run(0)
    assert len(set((tmp_path / "data").glob("cache-*")) - set(before)) == 2


def test_iterable_dataset_map(tokenizer, tmp_path):
    data = dataset_of("bytes", tmp_path).to_iterable_dataset()
    for i, row in enumerate(data.map(tokenizer.encode_codes)):
        wanted = tokenizer.encode_codes(str(tmp_path / f"{i}.wav"))
        assert np.array_equal(row["codes"], wanted["codes"])


def test_latents_map(tokenizer, tmp_path):
    data = dataset_of("paths", tmp_path)
    latents = data.map(tokenizer.encode_latents)
    codes = latents.map(tokenizer.latents_to_codes)
    for i in range(len(data)):
        wanted = tokenizer.encode_codes(str(tmp_path / f"{i}.wav"))
        assert np.array_equal(codes[i]["codes"], wanted["codes"])
        wave = tokenizer.decode_latents(latents[i])
        assert wave.shape == (wanted["num_channels"], wanted["num_samples"])
