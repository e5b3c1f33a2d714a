import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models import tone

from tokenizer.audio import open_audio, write_audio
from tokenizer.training.augmentation import NO_AUGMENTATION, Augmentation
from tokenizer.training.clips import (
    Clip,
    identity,
    read_window,
    scan,
    scan_dataset,
    short_names,
    split_clips,
)
from tokenizer.training.crops import CropDataset, crop_batches

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    (root / "deep").mkdir()
    for i, (name, rate, channels) in enumerate(
        [("a.wav", 8000, 1), ("b.flac", 16_000, 2), ("deep/c.ogg", 8000, 1), ("d.wav", 8000, 1)]
    ):
        soundfile.write(root / name, tone(1.0 + i, rate, channels, seed=i).T, rate)
    (root / "notes.txt").write_text("no audio")
    return root


def crops(folder, augmentation: Augmentation = NO_AUGMENTATION, seed: int = 0) -> CropDataset:
    return CropDataset(
        scan(folder),
        sampling_rate=8000,
        crop_length=4000,
        augmentation=augmentation,
        seed=seed,
        length=64,
    )


def test_scan_lists_audio_in_a_stable_order(folder):
    clips = scan(folder)
    assert [clip.name.removeprefix(str(folder) + "/") for clip in clips] == [
        "a.wav",
        "b.flac",
        "d.wav",
        "deep/c.ogg",
    ]
    assert [clip.num_samples / clip.sampling_rate for clip in clips] == [1, 2, 4, 3]
    assert [clip.num_channels for clip in clips] == [1, 2, 1, 1]


def test_scan_finds_what_libsndfile_reads(tmp_path):
    suffixes = {
        "OGG": "oga",
        "AIFF": "aifc",
        "RF64": "rf64",
        "W64": "w64",
        "CAF": "caf",
        "AU": "au",
    }
    for kind, suffix in suffixes.items():
        soundfile.write(tmp_path / f"a.{suffix}", tone(0.5).T, 8000, format=kind)
    assert [clip.num_samples for clip in scan(tmp_path)] == [4000] * len(suffixes)


def test_scan_refuses_what_is_no_audio(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No audio"):
        scan(tmp_path)
    (tmp_path / "bad.wav").write_text("text")
    with pytest.raises(ValueError, match=r"bad\.wav"):
        scan(tmp_path)


def test_dataset_clips_equal_files(folder, tmp_path):
    paths = [clip.name for clip in scan(folder)]
    data = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio())
    data.save_to_disk(tmp_path / "saved")
    for a, b in zip(scan(tmp_path / "saved"), scan(folder), strict=True):
        assert (a.num_samples, a.sampling_rate) == (b.num_samples, b.sampling_rate)
        np.testing.assert_array_equal(a.read(100, 500), b.read(100, 500))
    datasets.DatasetDict({"test": data.select([0]), "train": data}).save_to_disk(tmp_path / "both")
    assert len(scan(tmp_path / "both")) == len(paths)
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match="test"):
        scan(tmp_path / "other")
    no_audio = datasets.Dataset.from_dict({"text": ["x"]})
    no_audio.save_to_disk(tmp_path / "text")
    with pytest.raises(ValueError, match="'audio'"):
        scan(tmp_path / "text")


def test_rows_without_audio_are_skipped_and_named(folder, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    rows = [str(folder / "a.wav"), None, str(tmp_path / "bad.wav")]
    data = datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio())
    skipped = []
    assert [clip.index for clip in scan_dataset(data, skipped)] == [0]
    assert [name in reason for name, reason in zip(("row 1", "row 2"), skipped, strict=True)] == [
        True, True,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="row 1"):
        scan_dataset(data)


def test_a_disk_that_is_full_when_a_dataset_is_cached_is_an_oserror(monkeypatch):
    def load(*_, **__):
        full = OSError(28, "No space left on device")
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from full

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(OSError, match="No space left"):
        scan("dataset:any/thing")


def test_windows_are_parts_of_files(folder):
    clip = scan(folder)[0]
    whole, _ = soundfile.read(clip.name, dtype="float32")
    window = read_window(clip, 0.25, 0.5, 8000, 0)
    np.testing.assert_array_equal(window, whole[2000:6000])
    assert len(read_window(clip, 0.9, 0.5, 8000, 0)) == 800
    stereo = scan(folder)[1]
    assert len(read_window(stereo, 0.5, 1.0, 8000, 1)) == 8000


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_parts_are_those_of_the_whole_file_also_near_its_end(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_audio(path, tone(2.0, 48_000, 1), 48_000)
    whole = open_audio(path, target_rate=48_000).read().T
    (clip,) = scan(tmp_path)
    for first in (0, 12_345, clip.num_samples - 700):
        part = clip.read(first, 1000)
        assert len(part) == min(1000, clip.num_samples - first)
        # Lossy decoders take some samples to settle after a jump.
        np.testing.assert_allclose(part[600:], whole[first : first + 1000][600:], atol=2e-3)


def test_split_is_even_and_complete(folder):
    clips = scan(folder)
    train, held_out = split_clips(clips, 2)
    assert sorted(c.name for c in train + held_out) == sorted(c.name for c in clips)
    assert len(held_out) == 2
    with pytest.raises(ValueError, match=r"\b4 of 4\b"):
        split_clips(clips, 4)


def test_crops_depend_on_seed_and_index_alone(folder):
    one, two = crops(folder, Augmentation()), crops(folder, Augmentation())
    for index in (5, 0, 17):
        a, b = one[index], two[index]
        assert a["audio"].shape == (1, 4000)
        assert torch.equal(a["audio"], b["audio"])
        assert a["gain"] == b["gain"]
    other = crops(folder, Augmentation(), seed=1)
    assert not torch.equal(one[5]["audio"], other[5]["audio"])
    assert not torch.equal(one[5]["audio"], one[6]["audio"])


def test_batches_resume_and_are_shared_among_processes(folder):
    def batches(**options):
        found = crop_batches(crops(folder), batch_size=4, num_workers=0, **options)
        return [batch["audio"] for batch in found]

    whole = batches(first=0)
    assert len(whole) == 16
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], batches(first=5), strict=True))
    halves = [batches(first=0, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(8):
        for rank in (0, 1):
            assert torch.equal(halves[rank][step], whole[2 * step + rank])


def test_a_long_run_needs_no_list_of_its_crops(folder):
    dataset = crops(folder)
    dataset.length = 10**12
    first = next(crop_batches(dataset, batch_size=4, first=10**9, num_workers=0))
    assert first["index"].tolist() == [4 * 10**9 + i for i in range(4)]


def test_a_worker_says_what_is_wrong_in_a_line(folder, tmp_path):
    gone = shutil.copytree(folder, tmp_path / "gone")
    dataset = crops(gone)
    shutil.rmtree(gone)
    with pytest.raises(RuntimeError) as error:
        next(crop_batches(dataset, batch_size=2, first=0, num_workers=1))
    assert str(error.value).startswith("20 clips in a row could not be read. The last: ")
    assert "Traceback" not in str(error.value)


def test_identity_tells_clips_apart(folder, tmp_path):
    clips = scan(folder)
    assert identity(clips) == identity(scan(folder))
    assert identity(clips) != identity(clips[1:]) != identity(clips[::-1])
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert identity(scan(moved)) == identity(clips)
    now = identity(scan(moved), modified=True)
    os.utime(moved / "a.wav", (1, 1))
    assert identity(scan(moved), modified=True) != now
    assert identity(scan(moved)) == identity(clips)


def test_short_names_tell_clips_apart():
    def names(*paths: str) -> list[str]:
        return short_names([Clip(path, 1, 8000, 1) for path in paths])

    assert names("/x/a.wav", "/y/b.wav") == ["a.wav", "b.wav"]
    assert names("/x/1/a.wav", "/y/1/a.wav", "/y/2/b.wav") == [
        "x/1/a.wav",
        "y/1/a.wav",
        "y/2/b.wav",
    ]
    assert names("/x/a.wav", "/x/a.wav") == ["a.wav", "a.wav"]
    assert names() == []


def test_datasets_with_as_many_rows_are_told_apart():
    def clips(seed: int) -> list[Clip]:
        file = io.BytesIO()
        soundfile.write(file, tone(1.0, 8000, 1, seed=seed).T, 8000, format="WAV")
        rows = datasets.Dataset.from_dict({"audio": [{"path": None, "bytes": file.getvalue()}]})
        return scan_dataset(rows.cast_column("audio", datasets.Audio(decode=False)))

    assert identity(clips(0)) == identity(clips(0))
    assert identity(clips(0)) != identity(clips(1))


def test_gain_is_the_level_of_the_surroundings(folder):
    item = crops(folder)[3]
    measured = item["audio"].square().mean().sqrt()
    assert float(item["gain"]) == pytest.approx(float(measured), rel=0.3)


def test_lowpass_removes_what_is_above_and_keeps_what_is_below(folder):
    only = replace(NO_AUGMENTATION, lowpass=1.0, lowpass_range=(1000.0, 1000.0))
    for index in range(8):
        filtered, whole = crops(folder, only)[index]["audio"], crops(folder)[index]["audio"]
        spectra = [np.abs(np.fft.rfft(x[0].numpy() * np.hanning(4000))) for x in (filtered, whole)]
        assert spectra[0][600:].max() < 0.02 * spectra[1].max()  # 1200 Hz and up
    level = replace(NO_AUGMENTATION, round_to_16_bit=1.0)
    rounded = crops(folder, level)[2]["audio"] * 32767
    torch.testing.assert_close(rounded, rounded.round(), atol=2e-3, rtol=0)


def test_crops_keep_the_channels_that_a_model_codes_jointly(tmp_path):
    wave = np.stack([tone(2.0, seed=0)[0], 0.3 * tone(2.0, seed=1)[0], tone(2.0, seed=2)[0]])
    soundfile.write(tmp_path / "a.wav", wave.T, 8000, subtype="FLOAT")

    def pair(first: np.ndarray, channels: tuple[int, int]) -> bool:
        places = np.correlate(wave[channels[0]], first[0].astype(np.float64), "valid")
        start = int(places.argmax())
        return np.array_equal(wave[list(channels), start : start + 800], first)

    dataset = CropDataset(
        scan(tmp_path),
        sampling_rate=8000,
        crop_length=800,
        augmentation=NO_AUGMENTATION,
        seed=0,
        length=16,
        num_channels=2,
        window_seconds=1.0,
    )
    found = []
    for item in (dataset[i] for i in range(16)):
        crop = item["audio"].numpy()
        assert crop.shape == (2, 800)
        signs = (crop, -crop)  # half of them are turned around
        found += [c for c in ((0, 1), (2, 2)) if any(pair(crop, c) for crop in signs)]
    assert len(found) == 16
    assert set(found) == {(0, 1), (2, 2)}


def test_augmented_crops_of_two_channels(folder):
    dataset = CropDataset(
        scan(folder),
        sampling_rate=8000,
        crop_length=4000,
        augmentation=Augmentation(lowpass=1.0, mix=1.0, lowpass_range=(1000.0, 2000.0)),
        seed=0,
        length=8,
        num_channels=2,
    )
    for item in (dataset[i] for i in range(8)):
        assert item["audio"].shape == (2, 4000)
        assert bool(item["audio"].isfinite().all())


# Each augmentation by itself, as often as it can be, and all of them together.
ALONE = {
    "speed": {"speed": 1.0},
    "lowpass": {"lowpass": 1.0, "lowpass_range": (500.0, 3000.0)},
    "mix": {"mix": 1.0},
    "round_to_16_bit": {"round_to_16_bit": 1.0},
    "level": {"level_range": 30.0, "level_jitter": 6.0},
}
ALONE["all"] = {name: value for changes in ALONE.values() for name, value in changes.items()}


def stereo_crops(
    folder: Path, left: list[np.ndarray], right: list[np.ndarray], changes: dict
) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    for i, channels in enumerate(zip(left, right, strict=True)):
        soundfile.write(folder / f"{i}.wav", np.stack(channels).T, 16_000, subtype="FLOAT")
    dataset = CropDataset(
        scan(folder),
        sampling_rate=8000,
        crop_length=2000,
        augmentation=replace(NO_AUGMENTATION, **changes),
        seed=3,
        length=6,
        num_channels=2,
        window_seconds=0.5,
    )
    return [dataset[i] for i in range(6)]


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("ratio", [1.0, -1.0, 0.25, 0.0])
def test_every_augmentation_keeps_the_place_of_a_sound_between_the_channels(tmp_path, name, ratio):
    """Equal channels stay equal; what is side alone stays side; what is silent stays silent."""
    waves = [tone(1.0, 16_000, seed=i)[0] for i in range(3)]
    crops = stereo_crops(tmp_path / "a", waves, [ratio * wave for wave in waves], ALONE[name])
    for item in crops:
        left, right = item["audio"]
        assert float(left.std()) > 1e-3
        # Two roundings to 16 bits, of which one counts less.
        torch.testing.assert_close(right, ratio * left, atol=1.01 / 32767, rtol=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_every_augmentation_treats_left_as_right(tmp_path, name):
    first, second = ([tone(1.0, 16_000, seed=i + k)[0] for i in range(3)] for k in (0, 10))
    crops = stereo_crops(tmp_path / "a", first, second, ALONE[name])
    swapped = stereo_crops(tmp_path / "b", second, first, ALONE[name])
    for item, other in zip(crops, swapped, strict=True):
        torch.testing.assert_close(item["audio"].flip(0), other["audio"], atol=2e-6, rtol=1e-5)
        side = item["audio"][0] - item["audio"][1]
        # Independent channels: as much side as mid, give or take what tones do.
        mid = item["audio"].sum(0)
        assert 0.2 < float(side.std() / mid.std()) < 5


def test_speed_moves_pitch_and_keeps_the_length(tmp_path):
    t = np.arange(16_000 * 8) / 16_000
    soundfile.write(tmp_path / "tone.wav", 0.1 * np.sin(2 * np.pi * 1000 * t), 16_000)
    augmentation = replace(NO_AUGMENTATION, speed=1.0, speed_range=(1.25, 1.25))
    items = crops(tmp_path, augmentation)
    for index in range(4):
        audio = items[index]["audio"][0].numpy()
        assert audio.shape == (4000,)
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(4000)))
        assert np.argmax(spectrum) * 8000 / 4000 == pytest.approx(1250, abs=3)
