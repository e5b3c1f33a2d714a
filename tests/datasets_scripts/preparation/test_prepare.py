"""Preparation of datasets: rows, segments, failures, options."""

import json
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from models import ENTRIES, HOP, RATE, tone
from preparing import BOTH, assert_same_rows, files_of, rows_of, write

from datasets_scripts import Resources, RowOptions, prepare_dataset, read_manifest, verify_dataset
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.preparation.encoding import NumberedClip, by_length, encode_clips
from datasets_scripts.preparation.reading import cut, trim
from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.ids import SeenIds

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
    encode = tokenizer.encode_codes

    def refuse(audio, **options):
        if any(item["array"].max() > 0.99 for item in audio):
            raise ValueError("too loud")
        return encode(audio, **options)

    monkeypatch.setattr(tokenizer, "encode_codes", refuse)
    path, other = write(tmp_path / "x.wav", 4.0), write(tmp_path / "y.wav", 4.0)
    audio, _ = soundfile.read(path)
    audio[RATE + 10] = 1.0
    soundfile.write(path, audio, RATE)
    stand_in(CorpusClip("a", path), CorpusClip("b", other))
    for seconds in (0.001, 100):  # A window for every segment, or one for all.
        out = tmp_path / f"o{seconds}"
        options = RowOptions(segment_seconds=0.5)
        resources = Resources(batch_seconds=seconds)
        manifest = prepare_dataset(
            "x", tmp_path, out, tokenizer=tokenizer, options=options, resources=resources
        )
        (failure,) = manifest.failures
        assert (failure.id, failure.reason, failure.rows_kept) == ("a", "too loud", 7)
        assert len(rows_of(out)) == 15


def test_batches_that_a_gpu_has_no_memory_for_are_halved(
    corpus, prepared, tokenizer, tmp_path, monkeypatch
):
    encode, sizes = tokenizer.encode_latents, []

    def refuse(audio, **options):
        if not sizes:
            time.sleep(0.5)  # All other clips are read meanwhile, and make one batch.
        sizes.append(len(audio) * max(item["array"].shape[-1] for item in audio))
        if sizes[-1] > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode(audio, **options)

    monkeypatch.setattr(tokenizer, "encode_latents", refuse)
    how = {"tokenizer": tokenizer, "options": BOTH, "resources": Resources(batch_seconds=100)}
    limit = 2.1 * RATE
    with pytest.warns(UserWarning, match="no memory for a batch"):
        prepare_dataset("audiofolder", corpus, tmp_path / "o", **how)
    assert max(sizes) > limit
    assert files_of(tmp_path / "o") == files_of(prepared)
    limit = 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="--segment-seconds"):
            prepare_dataset("audiofolder", corpus, tmp_path / "p", **how)


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
    with pytest.raises(RuntimeError, match=r"--strict: bad: .*no\.wav"):
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
    with pytest.raises(RuntimeError, match=r"'train'.* a: it is gone"):
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


# Options and addresses


def test_an_unknown_split_or_corpus_or_option_is_named(corpus, tokenizer, tmp_path):
    out = tmp_path / "o"
    with pytest.raises(ValueError, match=r"'dev'.* train"):
        prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, splits=["dev"])
    with pytest.raises(ValueError, match=r"'audiofoldr'.*audiofolder"):
        prepare_dataset("audiofoldr", corpus, out, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"'lables'.* labels"):
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


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e308, 0, -1])
def test_segments_last_a_finite_time(seconds):
    with pytest.raises(ValueError, match="segment_seconds"):
        RowOptions(segment_seconds=seconds).segment_length(RATE, HOP)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 0, -1])
def test_batches_last_a_finite_time(seconds):
    with pytest.raises(ValueError, match=f"batch_seconds={seconds}"):
        Resources(batch_seconds=seconds)
