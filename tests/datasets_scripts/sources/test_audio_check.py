"""`check` tells files that are read whole from those that are not, or refuses them by name."""

import numpy as np
import pytest
import soundfile
from odd_audio import of_unknown_length, without_first_frame

from datasets_scripts.cli import main
from datasets_scripts.corpora import find_corpus
from datasets_scripts.sources.audio_check import CheckedFile, check_audio
from tokenizer.audio import list_audio
from tokenizer.training.clips import scan

pytest.importorskip("av")
RATE = 48_000
# Joined, they are refused.
PLAIN = ("wav", "aiff", "caf", "au", "w64", "rf64")


@pytest.fixture
def folder(tmp_path):
    samples = (0.1 * np.random.default_rng(0).normal(size=(RATE, 1))).astype(np.float32)
    kinds = ("flac", "ogg", "mp3", *PLAIN)
    for name in (f"a.{kind}" for kind in kinds):
        soundfile.write(tmp_path / name, samples, RATE)
    soundfile.write(tmp_path / "a.opus", samples, RATE, format="OGG", subtype="OPUS")
    for bits in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"):
        soundfile.write(tmp_path / f"{bits}.wav", samples, RATE, subtype=bits)
    for suffix in kinds:
        part = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"joined.{suffix}").write_bytes(part + part)
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.3}
    soundfile.write(tmp_path / "vbr.mp3", np.tile(samples, (8, 1)), RATE, **options)
    (tmp_path / "vbr.mp3").write_bytes(without_first_frame((tmp_path / "vbr.mp3").read_bytes()))
    (tmp_path / "pipe.flac").write_bytes(of_unknown_length((tmp_path / "a.flac").read_bytes()))
    for name in ("empty.wav", "junk.mp3", "text.txt"):
        (tmp_path / name).write_bytes(name[:5].encode() * 40 * (name[0] != "e"))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "._a.wav").write_bytes(b"of another system")
    return tmp_path


def test_odd_files_are_whole_or_refused_by_name(folder, capsys):
    checked = {file.path.name: file for file in check_audio(folder)}
    assert all(file.is_whole for file in checked.values()), checked
    refused = {name for name, file in checked.items() if file.refused is not None}
    joined = {f"joined.{kind}" for kind in PLAIN}
    assert refused == {"empty.wav", "junk.mp3", "text.txt", "cut.wav"} | joined
    assert all(name in (checked[name].refused or "") for name in refused)
    lengths = {"a.flac": 1, "pipe.flac": 1, "joined.flac": 2, "joined.ogg": 2, "vbr.mp3": 8}
    for name, seconds in lengths.items():
        found = checked[name].num_samples or 0
        assert found == pytest.approx(seconds * RATE, abs=checked[name].slack), name
    # FFmpeg's lengths are there for all that is not refused.
    assert [name for name, f in checked.items() if not f.expected and name not in refused] == []
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"{len(refused)} refused, 0 of another length" in said
    assert all(f"{folder / name}: refused: " in said for name in refused)
    assert not CheckedFile(folder, 10, 11).is_whole


def test_one_listing_skips_counts_and_names(folder):
    (folder / "music").mkdir()
    (folder / "a.wav").rename(folder / "music/a.wav")
    (folder / "link").symlink_to(folder / "music")
    (folder / "music" / "back").symlink_to(folder)
    names = [path.name for path in list_audio(folder)]
    assert names.count("a.wav") == 1
    assert "._a.wav" not in names
    prepared = find_corpus("audiofolder").prepare(folder, "train")
    assert sorted(item.id for item in prepared) == [
        str(path.relative_to(folder)) for path in list_audio(folder)
    ]
    skipped = []
    clips = scan(folder, skipped)
    assert len(clips) + len(skipped) == len(names)
    assert {word for word in ("empty.wav", "junk.mp3") for line in skipped if word in line} == {
        "empty.wav", "junk.mp3",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"empty\.wav"):
        scan(folder)
    assert [clip.num_samples for clip in scan(folder / "a.flac")] == [RATE]
