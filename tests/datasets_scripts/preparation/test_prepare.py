"""Preparation of datasets: rows, segments, failures, statistics, resumption, verification."""

import json
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from models import DIM, ENTRIES, HOP, RATE, tone
from preparing import assert_same_rows, files_of, make_folder, rows_of

from datasets_scripts import (
    Resources,
    RowOptions,
    prepare_dataset,
    read_manifest,
    verify_dataset,
)
from datasets_scripts.cli import main
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.preparation.encoding import NumberedClip, by_length, encode_clips
from datasets_scripts.preparation.reading import trim
from datasets_scripts.preparation.segments import cut, segment_length
from datasets_scripts.sources.corpus import Corpus, CorpusClip, CorpusInfo, Missing
from datasets_scripts.sources.ids import SeenIds

BOTH = RowOptions(codes=True, latents=True, clips_per_shard=4)
# So short that clips of different lengths do not go together, and many windows are needed.
SMALL = Resources(batch_seconds=0.5, num_readers=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    make_folder(root, 11)
    return root


@pytest.fixture(scope="module")
def prepared(corpus, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH, resources=SMALL)
    return out


class StandIn(Corpus):
    """A corpus that yields what a test says."""

    def __init__(self, *items, splits=("train",)):
        self.INFO = CorpusInfo("x", "Stand-in", "nowhere", "CC0", splits=splits)
        self.items = items

    def describe(self, _):
        return self.INFO

    def prepare(self, *_):
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


@pytest.fixture
def stand_in(monkeypatch):
    def use(*items, **options):
        found = StandIn(*items, **options)
        monkeypatch.setattr("datasets_scripts.corpora.CORPORA", {"x": found})

    return use


def write(path, seconds=0.5, rate=RATE, channels=1, seed=0):
    soundfile.write(path, tone(seconds, rate, channels, seed).T, rate)
    return Path(path)


# Rows


def test_rows_are_those_of_the_tokenizer(corpus, prepared, tokenizer):
    rows = rows_of(prepared)
    names = sorted(path.relative_to(corpus).as_posix() for path in corpus.rglob("*.wav"))
    assert [row["id"] for row in rows] == names
    for row in rows:
        path = corpus / row["id"]
        expected = tokenizer.encode_codes(path)
        np.testing.assert_array_equal(row["codes"], expected["codes"])
        latents = tokenizer.encode_latents(path)["latents"].astype(np.float16)
        np.testing.assert_array_equal(row["latents"], latents)
        np.testing.assert_allclose(row["gain"], expected["gain"], rtol=1e-6)
        assert (row["num_samples"], row["num_channels"]) == (
            expected["num_samples"],
            expected["num_channels"],
        )
        assert row["label"] == row["id"][0]
        assert (row["source_id"], row["start"]) == (row["id"], 0)
        assert row["fingerprint"] == tokenizer.fingerprint
        audio = tokenizer.decode_codes(row)
        assert audio.shape == (row["num_channels"], row["num_samples"])
        assert tokenizer.decode_latents(row).shape == audio.shape


def test_shards_hold_so_many_clips_each(prepared):
    manifest = read_manifest(Folder(prepared))
    assert [shard.clips for shard in manifest.shards] == [4, 4, 3]
    assert [shard.rows for shard in manifest.shards] == [4, 4, 3]
    assert manifest.complete
    assert manifest.splits == ("train",)
    assert not (prepared / "progress").exists()


def test_batches_readers_and_windows_change_nothing(corpus, prepared, tokenizer, tmp_path):
    other = Resources(batch_seconds=100, num_readers=1)
    prepare_dataset(
        "audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=BOTH, resources=other
    )
    ours, theirs = files_of(tmp_path / "o"), files_of(prepared)
    assert ours.keys() == theirs.keys()
    assert ours == theirs


def test_fewer_codebooks_are_a_prefix(corpus, prepared, tokenizer, tmp_path):
    options = RowOptions(bitrate=tokenizer.bitrate(2))
    prepare_dataset("audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=options)
    # The same thing, asked for in another way.
    same = RowOptions(n_codebooks=2)
    prepare_dataset("audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=same)
    for row, full in zip(rows_of(tmp_path / "o"), rows_of(prepared), strict=True):
        np.testing.assert_array_equal(row["codes"], full["codes"][:, :2])
        assert row["latents"] is None
    assert read_manifest(Folder(tmp_path / "o")).codebook_sizes == (ENTRIES,) * 2


def test_latents_alone(corpus, prepared, tokenizer, tmp_path):
    options = RowOptions(codes=False, latents=True)
    prepare_dataset("audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=options)
    for row, full in zip(rows_of(tmp_path / "o"), rows_of(prepared), strict=True):
        np.testing.assert_array_equal(row["latents"], full["latents"])
        assert row["codes"] is None
    assert verify_dataset(tmp_path / "o") == []


def test_long_files_are_streamed_with_the_same_result(corpus, prepared, tokenizer, tmp_path):
    # A window of a few milliseconds: no clip is ever held as a whole.
    tiny = Resources(batch_seconds=0.001)
    prepare_dataset(
        "audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=BOTH, resources=tiny
    )
    assert_same_rows(rows_of(tmp_path / "o"), rows_of(prepared))


def test_a_batch_of_less_than_a_sample_still_takes_clips(tokenizer, tmp_path):
    tasks = [NumberedClip(0, CorpusClip("x", write(tmp_path / "x.wav", 0.1)))]
    tiny = Resources(batch_seconds=1e-9)
    # In a thread: it once went round for ever.
    found = []
    run = partial(encode_clips, tokenizer, tasks, RowOptions(), tiny)
    thread = threading.Thread(target=lambda: found.extend(run()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert [event.clip_id for event in found] == ["x", "x"]


# Segments


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_cut_loses_nothing(block):
    signal = np.arange(2 * 250, dtype=np.float32).reshape(2, 250)
    blocks = [signal[:, i : i + block] for i in range(0, 250, block)]
    found = list(cut(blocks, 60))
    assert [start for start, _ in found] == [0, 60, 120, 180, 240]
    assert [samples.shape[-1] for _, samples in found] == [60, 60, 60, 60, 10]
    np.testing.assert_array_equal(np.concatenate([s for _, s in found], axis=-1), signal)


@pytest.mark.parametrize(("first", "end"), [(0, None), (5, 17), (10, 20), (0, 30), (12, 13)])
def test_trim(first, end):
    signal = np.arange(30, dtype=np.float32)[None]
    blocks = [signal[:, i : i + 10] for i in range(0, 30, 10)]
    found = np.concatenate(list(trim(blocks, first, end)), axis=-1)
    np.testing.assert_array_equal(found, signal[:, first:end])


def test_trim_reads_no_further():
    def blocks():
        yield np.zeros((1, 10), dtype=np.float32)
        raise AssertionError("read on")

    assert sum(block.shape[-1] for block in trim(blocks(), 2, 10)) == 8


def test_segments_are_encoded_as_clips_of_their_own(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    audio = tone(1.3, channels=2)
    soundfile.write(tmp_path / "in" / "x.wav", audio.T, RATE, subtype="FLOAT")
    out = tmp_path / "out"
    options = RowOptions(codes=True, latents=True, segment_seconds=0.5)
    prepare_dataset("audiofolder", tmp_path / "in", out, tokenizer=tokenizer, options=options)
    rows = rows_of(out)
    assert [row["id"] for row in rows] == ["x.wav@0", "x.wav@4000", "x.wav@8000"]
    assert {row["source_id"] for row in rows} == {"x.wav"}
    assert [row["num_samples"] for row in rows] == [4000, 4000, audio.shape[-1] - 8000]
    for row in rows:
        part = audio[:, row["start"] : row["start"] + row["num_samples"]]
        expected = tokenizer.encode_codes(part, sampling_rate=RATE)["codes"]
        np.testing.assert_array_equal(row["codes"], expected)


def test_segments_are_whole_frames(tmp_path, tokenizer):
    write(tmp_path / "x.wav", 1.0)
    options = RowOptions(segment_seconds=0.3333)
    prepare_dataset("audiofolder", tmp_path, tmp_path / "o", tokenizer=tokenizer, options=options)
    starts = [row["start"] for row in rows_of(tmp_path / "o")]
    assert starts == [0, 33 * HOP, 66 * HOP, 99 * HOP]


@pytest.mark.parametrize("seconds", [0.001, 100])
def test_clips_inside_a_file(tmp_path, tokenizer, stand_in, seconds):
    path = write(tmp_path / "x.wav", 2.0)
    stand_in(
        CorpusClip("all", path),
        CorpusClip("part", path, start=0.5, end=1.25, caption="a part", metadata={"k": "v"}),
        CorpusClip("tail", path, start=1.9),
        CorpusClip("beyond", path, start=5.0),
    )
    resources = Resources(batch_seconds=seconds)
    manifest = prepare_dataset(
        "x", tmp_path, tmp_path / "o", tokenizer=tokenizer, resources=resources
    )
    rows = {row["id"]: row for row in rows_of(tmp_path / "o")}
    audio = soundfile.read(path, dtype="float32")[0]
    assert [rows[k]["num_samples"] for k in ("all", "part", "tail")] == [16000, 6000, 800]
    expected = tokenizer.encode_codes(audio[4000:10000], sampling_rate=RATE)["codes"]
    np.testing.assert_array_equal(rows["part"]["codes"], expected)
    assert rows["part"]["caption"] == "a part"
    assert json.loads(rows["part"]["metadata"]) == {"k": "v"}
    assert rows["all"]["metadata"] is None
    assert [failure.id for failure in manifest.failures] == ["beyond"]
    assert "ends before the clip begins, at 5 s" in manifest.failures[0].reason


# Failures


def test_failures_are_listed_and_counted(tmp_path, tokenizer, stand_in):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), RATE, subtype="FLOAT")
    whole = write(tmp_path / "good.wav").read_bytes()
    flac = write(tmp_path / "cut.flac", 3.0).read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "good.wav").write_bytes(whole)
    paths = {name: tmp_path / name for name in ("empty.wav", "text.wav", "none.wav", "nan.wav")}
    stand_in(
        CorpusClip("first", tmp_path / "good.wav"),
        *(CorpusClip(name, path) for name, path in paths.items()),
        CorpusClip("cut", tmp_path / "cut.flac"),
        CorpusClip("gone", tmp_path / "gone.wav"),
        Missing("absent", "the corpus says it was taken down"),
        CorpusClip("first", tmp_path / "good.wav"),
        CorpusClip("last", tmp_path / "good.wav"),
    )
    out = tmp_path / "o"
    manifest = prepare_dataset(
        "x", tmp_path, out, tokenizer=tokenizer, options=RowOptions(clips_per_shard=3)
    )
    assert [row["id"] for row in rows_of(out)] == ["first", "last"]
    reasons = {failure.id: failure.reason for failure in manifest.failures}
    assert list(reasons) == [*paths, "cut", "gone", "absent", "first"]
    assert "0 bytes" in reasons["empty.wav"]
    assert "Format not recognised" in reasons["text.wav"]
    assert "no samples" in reasons["none.wav"]
    assert "NaN" in reasons["nan.wav"]
    assert "damaged or cut off" in reasons["cut"]
    assert "No such file" in reasons["gone"]
    assert reasons["absent"] == "the corpus says it was taken down"
    assert "a second time" in reasons["first"]
    assert sum(shard.clips for shard in manifest.shards) == 10
    # The same from disk, and for people.
    assert read_manifest(Folder(out)).failures == manifest.failures
    assert "Missing: 8 clips" in (out / "README.md").read_text()
    assert verify_dataset(out) == []


def test_a_file_damaged_late_keeps_its_first_segments(tmp_path, tokenizer, stand_in):
    flac = write(tmp_path / "x.flac", 60.0).read_bytes()
    (tmp_path / "x.flac").write_bytes(flac[: len(flac) // 2])
    stand_in(CorpusClip("x", tmp_path / "x.flac"))
    options = RowOptions(segment_seconds=5)
    out = tmp_path / "o"
    manifest = prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)
    (failure,) = manifest.failures
    assert failure.rows_kept == len(rows_of(out)) > 0
    assert "damaged or cut off" in failure.reason


def test_an_error_in_one_segment_is_told_at_the_end(tmp_path, tokenizer, stand_in, monkeypatch):
    from datasets_scripts.preparation.encoding import _Encoder

    real = _Encoder._finish

    def finish(self, row, task, piece):
        if (task.item.id, piece.start) == ("a", RATE):
            return "its latents are impossible"
        return real(self, row, task, piece)

    monkeypatch.setattr(_Encoder, "_finish", finish)
    path = write(tmp_path / "x.wav", 4.0)
    stand_in(CorpusClip("a", path), CorpusClip("b", path))
    options = RowOptions(latents=True, segment_seconds=0.5)
    for seconds in (0.001, 100):  # A window for every segment, or one for all.
        out = tmp_path / f"o{seconds}"
        manifest = prepare_dataset(
            "x", tmp_path, out, tokenizer=tokenizer, options=options,
            resources=Resources(batch_seconds=seconds),
        )  # fmt: skip
        (failure,) = manifest.failures
        assert (failure.id, failure.reason) == ("a", "its latents are impossible")
        assert failure.rows_kept == 7
        assert len(rows_of(out)) == 15


def test_strict_stops_at_the_first_failure(tmp_path, tokenizer, stand_in):
    good = write(tmp_path / "good.wav")
    stand_in(
        CorpusClip("a", good),
        CorpusClip("b", good),
        CorpusClip("bad", tmp_path / "no.wav"),
        CorpusClip("c", good),
    )
    options = RowOptions(clips_per_shard=2)
    out = tmp_path / "o"
    with pytest.raises(RuntimeError, match=r"--strict: bad: No such file"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options, strict=True)
    # What was whole stays, half a shard does not.
    assert sorted(files_of(out)) == [
        "data/train-00000.parquet", "manifest.json", "progress/train-00000.json",
    ]  # fmt: skip
    # Without --strict it goes on from there.
    prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)
    assert [row["id"] for row in rows_of(out)] == ["a", "b", "c"]


def test_nothing_at_all_is_an_error(tmp_path, tokenizer, stand_in):
    stand_in(Missing("a", "it is gone"), Missing("b", "so is this"))
    with pytest.raises(RuntimeError, match=r"No clip .* The first: a: it is gone"):
        prepare_dataset("x", tmp_path, tmp_path / "o", tokenizer=tokenizer)


def test_errors_of_the_corpus_end_the_run(tmp_path, tokenizer, stand_in):
    stand_in(
        CorpusClip("a", write(tmp_path / "x.wav")),
        ValueError("metadata.csv, line 7: no such column"),
    )
    with pytest.raises(ValueError, match="line 7"):
        prepare_dataset("x", tmp_path, tmp_path / "o", tokenizer=tokenizer)


def test_what_torchcodec_reads_is_read_where_it_is_installed(tmp_path, tokenizer, monkeypatch):
    import sys
    import types

    class Decoder:
        def __init__(self, source):
            assert Path(source).name == "x.m4a"

        def get_all_samples(self):
            return types.SimpleNamespace(data=tone(0.5), sample_rate=RATE)

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.m4a").write_bytes(b"an AAC file, to libsndfile no audio")
    module = types.ModuleType("torchcodec.decoders")
    module.AudioDecoder = Decoder
    monkeypatch.setattr("datasets_scripts.preparation.reading.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    manifest = prepare_dataset("audiofolder", tmp_path / "in", tmp_path / "o", tokenizer=tokenizer)
    assert not manifest.failures
    expected = tokenizer.encode_codes(tone(0.5), sampling_rate=RATE)["codes"]
    np.testing.assert_array_equal(rows_of(tmp_path / "o")[0]["codes"], expected)


# Going on


def test_a_run_that_stopped_anywhere_goes_on(corpus, prepared, tokenizer, tmp_path, monkeypatch):
    # Every call that changes a file is a place to stop, before it and after it.
    class Stopped(BaseException):
        pass

    real = Folder.writing.__wrapped__
    calls = 0

    def stop_at(place):
        from contextlib import contextmanager

        @contextmanager
        def writing(self, name):
            nonlocal calls
            calls += 1
            if calls == place:
                raise Stopped
            with contextmanager(real)(self, name) as path:
                yield path
            if calls == -place:
                raise Stopped

        monkeypatch.setattr(Folder, "writing", writing)

    def run(out):
        nonlocal calls
        calls = 0
        prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH)

    stop_at(10**9)
    run(tmp_path / "whole")
    assert calls == 1 + 3 * 2 + 3  # manifest; shards and their records; statistics, card, manifest
    expected = files_of(prepared)
    for place in range(1, calls + 1):
        for sign in (1, -1):
            out = tmp_path / f"stopped{sign * place}"
            stop_at(sign * place)
            with pytest.raises(Stopped):
                run(out)
            written = {p: p.stat().st_mtime_ns for p in out.glob("progress/*.json")}
            stop_at(10**9)
            run(out)
            assert files_of(out) == expected, (place, sign)
            # It went on: shards that had a record were not written again.
            assert calls <= 1 + 3 * 2 + 3 - 2 * len(written)
            shutil.rmtree(out)


def test_a_second_run_does_nothing(corpus, prepared, tokenizer, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "o")
    monkeypatch.setattr(Folder, "writing", None)
    monkeypatch.setattr("datasets_scripts.preparation.reading.open_audio", None)
    prepare_dataset("audiofolder", corpus, tmp_path / "o", tokenizer=tokenizer, options=BOTH)
    assert files_of(tmp_path / "o") == files_of(prepared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RowOptions(codes=True, latents=True, clips_per_shard=5), "clips_per_shard 5, not 4"),
        (RowOptions(codes=True, clips_per_shard=4), "latents False, not True"),
        (RowOptions(latents=True, n_codebooks=3, clips_per_shard=4), "n_codebooks 3, not 4"),
        (RowOptions(latents=True, segment_seconds=1, clips_per_shard=4), "segment_seconds 1"),
    ],
)
def test_other_settings_are_refused(corpus, prepared, tokenizer, options, message):
    before = files_of(prepared)
    with pytest.raises(ValueError, match=message):
        prepare_dataset("audiofolder", corpus, prepared, tokenizer=tokenizer, options=options)
    assert files_of(prepared) == before


def test_another_tokenizer_is_refused(corpus, prepared, beam_tokenizer):
    with pytest.raises(ValueError, match="fingerprint"):
        prepare_dataset("audiofolder", corpus, prepared, tokenizer=beam_tokenizer, options=BOTH)


def test_a_folder_of_something_else_is_refused(corpus, tokenizer, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match="something else"):
        prepare_dataset("audiofolder", corpus, tmp_path, tokenizer=tokenizer)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "shrunk"])
def test_a_corpus_that_changed_meanwhile_is_refused(tmp_path, tokenizer, stand_in, change):
    good = write(tmp_path / "x.wav")
    clips = [CorpusClip(name, good) for name in "abcdef"]
    bad = CorpusClip("bad", tmp_path / "no.wav")
    options = RowOptions(clips_per_shard=2)
    out = tmp_path / "o"
    stand_in(*clips[:5], bad)
    with pytest.raises(RuntimeError, match="strict"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options, strict=True)
    others = {
        "added": [CorpusClip("new", good), *clips],
        "removed": clips[1:],
        "renamed": [clips[0], CorpusClip("new", good), *clips[2:]],
        "shrunk": clips[:3],
    }[change]
    stand_in(*others)
    with pytest.raises(ValueError, match="The corpus is not what it was"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abcd", "had 3 clips when it was prepared and has 4 now, others from shard 1 on"),
        ("abcdefg", "has 7 now, others from shard 1 on"),
        ("xabc", "has 4 now, others from shard 0 on"),
        ("ab", "has 2 now, others from shard 1 on"),
        ("", "has 0 now, others from shard 0 on"),
        ("axc", "has 3 now, others from shard 0 on"),
    ],
)
def test_a_finished_split_of_a_corpus_that_changed_is_refused(
    tmp_path, tokenizer, stand_in, names, message
):
    good = write(tmp_path / "x.wav")
    options = RowOptions(clips_per_shard=2)
    out = tmp_path / "o"
    stand_in(*(CorpusClip(name, good) for name in "abc"))
    prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)
    before = files_of(out)
    stand_in(*(CorpusClip(name, good) for name in names))
    with pytest.raises(ValueError, match=rf"'train' .*{message}\. .* another --out"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)
    assert files_of(out) == before


def test_a_folder_that_grew_is_refused_before_its_other_splits_are_prepared(
    tmp_path, tokenizer, capsys
):
    make_folder(tmp_path / "in" / "train", 2)
    make_folder(tmp_path / "in" / "test", 1)
    tokenizer.save_pretrained(tmp_path / "tok")
    out = tmp_path / "o"
    command = ["prepare", "audiofolder", str(tmp_path / "in"), "--out", str(out)]
    command += ["--tokenizer", str(tmp_path / "tok")]
    assert main([*command, "--split", "train"]) == 0
    before = files_of(out)
    write(tmp_path / "in" / "train" / "new.wav")
    capsys.readouterr()
    assert main([*command, "--split", "test", "train"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "'train' had 2 clips when it was prepared and has 3 now" in line
    # Complete as it was, though another split was asked for.
    assert files_of(out) == before
    assert verify_dataset(out) == []
    assert main([*command, "--split", "test"]) == 0
    assert read_manifest(Folder(out)).splits == ("train", "test")


def test_a_last_shard_that_would_grow_is_refused(tmp_path, tokenizer, stand_in, monkeypatch):
    good = write(tmp_path / "x.wav")
    options = RowOptions(clips_per_shard=2)
    out = tmp_path / "o"
    stand_in(*(CorpusClip(name, good) for name in "abc"))
    # Stopped when all shards are there, and the split is not yet finished.
    with monkeypatch.context() as patch:
        patch.setattr("datasets_scripts.preparation.prepare.finish_split", None)
        with pytest.raises(TypeError):
            prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)
    stand_in(*(CorpusClip(name, good) for name in "abcd"))
    with pytest.raises(ValueError, match="shard 1 of 'train'"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)


@pytest.mark.parametrize("place", ["", "data/", "progress/"])
def test_what_a_killed_run_was_writing_is_removed(corpus, prepared, tokenizer, tmp_path, place):
    out = tmp_path / "o"
    shutil.copytree(prepared, out)
    (out / place).mkdir(exist_ok=True)
    (out / f"{place}.manifest.json.0123456789abcdef.partial").write_text("{")
    prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH)
    assert not list(out.rglob(".*"))


def test_a_shard_that_was_removed_meanwhile_is_written_again(
    corpus, prepared, tokenizer, tmp_path, monkeypatch
):
    out = tmp_path / "o"
    with monkeypatch.context() as patch:
        patch.setattr("datasets_scripts.preparation.prepare.finish_split", None)
        with pytest.raises(TypeError):
            prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH)
    (out / "data/train-00001.parquet").unlink()
    prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH)
    assert files_of(out) == files_of(prepared)


def test_splits_may_be_prepared_one_after_another(tmp_path, tokenizer):
    for split, clips in (("train", 5), ("test", 3)):
        make_folder(tmp_path / "in" / split, clips, seed=clips)
    out, both = tmp_path / "o", tmp_path / "both"
    options = RowOptions(clips_per_shard=2)
    how = {"tokenizer": tokenizer, "options": options}
    first = prepare_dataset("audiofolder", tmp_path / "in", out, splits=["train"], **how)
    assert first.splits == ("train",)
    assert first.complete
    prepare_dataset("audiofolder", tmp_path / "in", out, **how)
    prepare_dataset("audiofolder", tmp_path / "in", both, **how)
    assert files_of(out) == files_of(both)
    statistics = json.loads((out / "statistics.json").read_text())
    parts = statistics["splits"]
    assert statistics["rows"] == parts["train"]["rows"] + parts["test"]["rows"] == 8


def test_an_unknown_split_or_corpus_or_option_is_named(corpus, tokenizer, tmp_path):
    out = tmp_path / "o"
    with pytest.raises(ValueError, match="no split 'dev'"):
        prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, splits=["dev"])
    with pytest.raises(ValueError, match=r"no corpus 'audiofoldr'.*audiofolder"):
        prepare_dataset("audiofoldr", corpus, out, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="no option 'lables'"):
        prepare_dataset(
            "audiofolder", corpus, out, tokenizer=tokenizer, corpus_options={"lables": "none"}
        )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare_dataset("audiofolder", tmp_path / "nowhere", out, tokenizer=tokenizer)
    assert not out.exists()


def test_options_of_the_corpus_arrive_and_count(corpus, tokenizer, tmp_path):
    out = tmp_path / "o"
    how = {"tokenizer": tokenizer}
    prepare_dataset("audiofolder", corpus, out, corpus_options={"labels": "none"}, **how)
    assert {row["label"] for row in rows_of(out)} == {None}
    with pytest.raises(ValueError, match="corpus_options"):
        prepare_dataset("audiofolder", corpus, out, **how)


# Statistics and verification


def test_statistics_are_those_of_the_rows(prepared):
    rows = rows_of(prepared)
    found = json.loads((prepared / "statistics.json").read_text())
    assert found["rows"] == len(rows)
    seconds = sum(row["num_samples"] for row in rows) / RATE
    assert found["hours"] == pytest.approx(seconds / 3600)
    codes = np.concatenate([row["codes"] for row in rows])
    assert found["frames"] == len(codes)
    for k, book in enumerate(found["codebooks"]):
        share = np.bincount(codes[:, k], minlength=ENTRIES) / len(codes)
        entropy = -sum(p * np.log2(p) for p in share if p)
        assert book["entropy"] == pytest.approx(entropy)
        assert book["perplexity"] == pytest.approx(2**entropy)
        assert book["utilization"] == pytest.approx(np.mean(share > 0))
    latents = np.concatenate([row["latents"] for row in rows]).astype(np.float64)
    assert latents.shape[1] == DIM
    np.testing.assert_allclose(found["latents_mean"], latents.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found["latents_std"], latents.std(0), rtol=1e-6)


def damage_shard(out):
    path = next(iter(out.glob("data/*.parquet")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "SHA-256"


def cut_shard(out):
    path = next(iter(out.glob("data/*.parquet")))
    path.write_bytes(path.read_bytes()[:100])
    return "no Parquet file"


def remove_shard(out):
    next(iter(out.glob("data/*.parquet"))).unlink()
    return "cannot be read"


def add_shard(out):
    shutil.copy(out / "data/train-00000.parquet", out / "data/train-00009.parquet")
    return "data/train-00009.parquet is not in manifest.json"


def swap_shards(out):
    a, b = out / "data/train-00000.parquet", out / "data/train-00002.parquet"
    first, last = a.read_bytes(), b.read_bytes()
    a.write_bytes(last), b.write_bytes(first)
    return "rows, not"


def change_statistics(out):
    path = out / "statistics.json"
    value = json.loads(path.read_text())
    value["splits"]["train"]["sums"]["code_counts"][0][0] += 1
    path.write_text(json.dumps(value))
    return "code_counts of 'train' are not those of the rows"


def unfinish(out):
    path = out / "manifest.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    return "not complete"


@pytest.mark.parametrize(
    "harm",
    [
        damage_shard, cut_shard, remove_shard, add_shard, swap_shards, change_statistics, unfinish,
    ],
)  # fmt: skip
def test_verify_finds_what_is_wrong(prepared, tmp_path, harm, capsys):
    out = tmp_path / "o"
    shutil.copytree(prepared, out)
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    expected = harm(out)
    assert main(["verify", str(out)]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert any(expected in line for line in printed), printed


def rewrite(out, **changes):
    """Writes the first shard again, with other values in its first row, and a fitting manifest."""
    from datasets_scripts.dataset.shards import writing_shard

    folder = Folder(out)
    manifest = read_manifest(folder)
    old = manifest.shards[0]
    rows = [row for row in rows_of(out)][: old.rows]
    rows[0] |= changes
    with writing_shard(folder, old.file, manifest.row_format()) as writer:
        for row in rows:
            writer.write(row)
    value = json.loads((out / "manifest.json").read_text())
    value["shards"][0] |= {"bytes": writer.num_bytes, "sha256": writer.sha256}
    (out / "manifest.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a/clip002.wav"}, "the id occurs twice"),
        ({"fingerprint": "0123"}, "made by the tokenizer 0123"),
        ({"codes": np.full((3, 4), ENTRIES, np.int16)}, "a code is out of range"),
        ({"codes": np.full((3, 4), -1, np.int16)}, "a code is out of range"),
        ({"latents": np.full((3, DIM), np.inf, np.float16)}, "not finite"),
        ({"gain": [1.0, 2.0, 3.0]}, "3 gains for"),
        ({"num_channels": 50}, "frames for 50 channels"),
    ],
)
def test_verify_looks_into_rows(prepared, tmp_path, changes, message):
    out = tmp_path / "o"
    shutil.copytree(prepared, out)
    rewrite(out)
    assert verify_dataset(out) == []
    rewrite(out, **changes)
    found = verify_dataset(out)
    assert any(message in problem for problem in found), found


def test_verify_needs_a_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        verify_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="format version None"):
        verify_dataset(tmp_path)


# Other places to write to


def test_an_fsspec_address_gets_the_same_files(corpus, prepared, tokenizer):
    import fsspec

    address = "memory://bucket/tokens"
    prepare_dataset("audiofolder", corpus, address, tokenizer=tokenizer, options=BOTH)
    memory = fsspec.filesystem("memory")
    found = {
        path.removeprefix("/bucket/tokens/"): memory.cat_file(path)
        for path in memory.find("/bucket/tokens")
    }
    assert found == files_of(prepared)
    assert verify_dataset(address) == []
    # It is read back from there to go on.
    prepare_dataset("audiofolder", corpus, address, tokenizer=tokenizer, options=BOTH)
    memory.rm("/bucket", recursive=True)


def test_audio_at_an_fsspec_address(corpus, prepared, tokenizer, tmp_path):
    prepare_dataset(
        "audiofolder", f"file://{corpus}", tmp_path / "o", tokenizer=tokenizer, options=BOTH
    )
    assert_same_rows(rows_of(tmp_path / "o"), rows_of(prepared))


# Parts


def test_batches_by_length_hold_everything_once():
    lengths = np.random.default_rng(0).integers(1, 100, 200).tolist()
    batches = list(by_length(lengths, 250))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 250
    assert list(by_length([500], 250)) == [[0]]


def test_seen_ids_agree_with_a_set():
    rng = np.random.default_rng(0)
    seen, expected = SeenIds(), set()
    for number in rng.integers(0, 60_000, 50_000).tolist():
        assert seen.add(f"clip {number}") == (number in expected)
        expected.add(number)
    assert len(seen._sorted) > 0


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e308, 0, -1])
def test_segments_last_a_finite_time(seconds):
    with pytest.raises(ValueError, match="segment_seconds"):
        segment_length(seconds, RATE, HOP)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0, -1])
def test_batches_last_a_finite_time(seconds):
    with pytest.raises(ValueError, match=r"batch_seconds.* positive and finite"):
        Resources(batch_seconds=seconds)


# The command line


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--segment-seconds", "inf"), "segment_seconds=inf is no finite time"),
        (("--segment-seconds", "nan"), "segment_seconds=nan is no finite time"),
        (("--batch-seconds", "inf"), "batch_seconds=inf; it must be positive and finite"),
        (("--num-proc", "0"), "num_proc=0; it must be at least 1"),
        (("--device", "cuda:99"), "Device 'cuda:99' cannot be used here"),
        (("--device", "gpu"), "Device 'gpu' cannot be used here"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(corpus, tokenizer, tmp_path, capsys, option, message):
    tokenizer.save_pretrained(tmp_path / "tok")
    command = ["prepare", "audiofolder", str(corpus), "--out", str(tmp_path / "o")]
    capsys.readouterr()
    assert main([*command, "--tokenizer", str(tmp_path / "tok"), *option]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert not (tmp_path / "o").exists()


def test_the_commands(corpus, prepared, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tok")
    out = tmp_path / "o"
    arguments = ["prepare", "audiofolder", str(corpus), "--out", str(out), "--codes", "--latents"]
    arguments += ["--tokenizer", str(tmp_path / "tok"), "--clips-per-shard", "4"]
    capsys.readouterr()
    assert main([*arguments, "--split", "train"]) == 0
    assert "11 rows in 3 shards, train" in capsys.readouterr().out
    assert_same_rows(rows_of(out), rows_of(prepared))
    assert main([*arguments, "--bitrate", "0.8"]) == 2
    assert "n_codebooks 2, not 4" in capsys.readouterr().err.splitlines()[-1]
    assert main(["list"]) == 0
    assert "audiofolder" in capsys.readouterr().out
    assert main(["info", "librispeech"]) == 0
    assert "CC BY 4.0" in capsys.readouterr().out.replace("-", " ")
    assert main(["info", "audiofolder", str(corpus)]) == 0
    assert "splits: train" in capsys.readouterr().out
    assert main(["download", "audiofolder", str(corpus)]) == 0
    assert str(corpus) in capsys.readouterr().out
    assert main(["info", "nothing"]) == 2
    assert main([*arguments, "--option", "labels"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_failures_are_reported_on_the_command_line(tmp_path, tokenizer, capsys):
    tokenizer.save_pretrained(tmp_path / "tok")
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "b.wav").write_bytes(b"")
    arguments = ["prepare", "audiofolder", str(tmp_path / "in"), "--out", str(tmp_path / "o")]
    arguments += ["--tokenizer", str(tmp_path / "tok")]
    capsys.readouterr()
    assert main(arguments) == 0
    assert "1 clips could not be prepared" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "o")
    assert main([*arguments, "--strict"]) == 2
    assert "--strict: b.wav" in capsys.readouterr().err
