"""Stopped preparations resume, and never mix with other settings or another corpus."""

import json
import re
import shutil

import pytest
from preparing import BOTH, files_of, make_folder, write

from datasets_scripts import RowOptions, prepare_dataset, read_manifest, verify_dataset
from datasets_scripts.cli import main
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.sources.corpus import CorpusClip


def test_a_run_that_stopped_anywhere_goes_on(tokenizer, tmp_path, monkeypatch):
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
        options = RowOptions(latents=True, clips_per_shard=1)
        prepare_dataset("audiofolder", tmp_path / "in", out, tokenizer=tokenizer, options=options)

    make_folder(tmp_path / "in", 3, longest=0.3)
    stop_at(10**9)
    run(tmp_path / "whole")
    assert calls == 1 + 3 * 2 + 3  # manifest; shards and their records; statistics, card, manifest
    expected = files_of(tmp_path / "whole")
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
        (RowOptions(codes=True, latents=True, clips_per_shard=5), r"clips_per_shard 5\D+4"),
        (RowOptions(codes=True, clips_per_shard=4), r"latents False\W+\w+ True"),
        (RowOptions(latents=True, n_codebooks=3, clips_per_shard=4), r"n_codebooks 3\D+4"),
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
    with pytest.raises(ValueError, match=str(tmp_path)):
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
    with pytest.raises(ValueError, match=r"shard [012]\b.*--out"):
        prepare_dataset("x", tmp_path, out, tokenizer=tokenizer, options=options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("abcd", "3 clips .* 4 now, .*shard 1"),
        ("abcdefg", "7 now, .*shard 1"),
        ("xabc", "4 now, .*shard 0"),
        ("ab", "2 now, .*shard 1"),
        ("", "0 now, .*shard 0"),
        ("axc", "3 now, .*shard 0"),
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
    with pytest.raises(ValueError, match=rf"'train' .*{message}\b.*--out"):
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
    assert re.search("'train' .*2 clips .*3 now", line)
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
    with pytest.raises(ValueError, match=r"'train' .*shard 1\b"):
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
