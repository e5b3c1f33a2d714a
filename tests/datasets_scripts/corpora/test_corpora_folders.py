"""Corpora that people make themselves: folders of audio, tar shards, datasets."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora_trees import clips, missing, prepared, write_sound, write_tree

from datasets_scripts.corpora import CORPORA, find_corpus
from datasets_scripts.sources.corpus import AudioBytes, RemoteMember, TarMember


def sound(seconds: float = 0.05, pitch: int = 300) -> bytes:
    time = np.arange(int(seconds * 8000)) / 8000
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * time), 8000, format="WAV")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


class TestAudiofolder:
    def test_a_plain_folder(self, tmp_path):
        root = write_tree(
            tmp_path,
            {"b.wav": None, "a.flac": None, "x/y/c.ogg": None, "notes.txt": "", "B.wav": None},
        )
        items = clips(prepared("audiofolder", root, "train"))
        assert [item.id for item in items] == ["B.wav", "a.flac", "b.wav", "x/y/c.ogg"]
        assert [item.label for item in items] == [None, None, None, "y"]
        assert CORPORA["audiofolder"].describe(root).splits == ("train",)
        assert CORPORA["audiofolder"].download(root, ["train"]) == root

    def test_splits_and_labels_are_folders(self, tmp_path):
        root = write_tree(
            tmp_path,
            {
                "Train/dog/1.wav": None,
                "Train/cat/1.wav": None,
                "valid/dog/2.wav": None,
                "eval/3.wav": None,
            },
        )
        assert CORPORA["audiofolder"].describe(root).splits == ("train", "validation", "test")
        train = clips(prepared("audiofolder", root, "train"))
        assert [(c.id, c.label) for c in train] == [
            ("Train/cat/1.wav", "cat"), ("Train/dog/1.wav", "dog")
        ]  # fmt: skip
        assert [c.label for c in clips(prepared("audiofolder", root, "validation"))] == ["dog"]
        assert [c.label for c in clips(prepared("audiofolder", root, "test"))] == [None]
        assert {c.label for c in clips(prepared("audiofolder", root, "train", labels="none"))} == {
            None
        }
        everything = prepared("audiofolder", root, "train", splits="none")
        assert len(everything) == 4
        with pytest.raises(ValueError, match="labels='yes'"):
            prepared("audiofolder", root, "train", labels="yes")
        with pytest.raises(ValueError, match="splits='some'"):
            prepared("audiofolder", root, "train", splits="some")

    def test_audio_beside_the_splits_is_no_secret(self, tmp_path):
        root = write_tree(tmp_path, {"train/1.wav": None, "docs/readme.txt": ""})
        assert len(prepared("audiofolder", root, "train")) == 1
        write_tree(root, {"extra/deep/2.wav": None})
        with pytest.raises(ValueError, match=r"extra/deep/2\.wav.*splits=none"):
            prepared("audiofolder", root, "train")
        write_tree(root, {"training/1.wav": None})
        with pytest.raises(ValueError, match="train and training"):
            CORPORA["audiofolder"].describe(root)

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_metadata(self, kind, tmp_path):
        rows = [
            {"file_name": "b.wav", "label": "dog", "transcription": "Woof, woof", "loud": 3},
            {"file_name": "sub/a.wav", "label": None, "transcription": None, "loud": None},
        ]
        root = write_tree(tmp_path, {"b.wav": None, "sub/a.wav": None})
        if kind == "csv":
            text = 'file_name,label,transcription,loud\nb.wav,dog,"Woof, woof",3\nsub/a.wav,,,\n'
            (root / "metadata.csv").write_text(text)
        elif kind == "jsonl":
            import json

            (root / "metadata.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
        else:
            import pyarrow
            from pyarrow.parquet import write_table

            write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")
        first, second = clips(prepared("audiofolder", root, "train"))
        assert (first.id, first.label, first.caption) == ("b.wav", "dog", "Woof, woof")
        assert first.metadata == {"loud": "3"}
        assert (second.id, second.label, second.caption, second.metadata) == (
            "sub/a.wav",
            None,
            None,
            {},
        )
        # Asked for, folders are labels even so.
        labels = [c.label for c in clips(prepared("audiofolder", root, "train", labels="folder"))]
        assert labels == [None, "sub"]
        (first, _) = clips(
            prepared("audiofolder", root, "train", label_column="loud", caption_column="label")
        )
        assert (first.label, first.caption) == ("3", "dog")
        assert first.metadata == {"transcription": "Woof, woof"}

    def test_captions_beside_the_audio(self, tmp_path):
        files = {"a.wav": None, "a.txt": " A dog \n", "b.v2.WAV": None, "b.v2.TXT": "A cat"}
        root = write_tree(tmp_path / "plain", {**files, "c.wav": None, "readme.txt": "no caption"})
        captions = [clip.caption for clip in clips(prepared("audiofolder", root, "train"))]
        assert captions == ["A dog", "A cat", None]
        # Metadata comes first.
        table = "file_name,text\na.wav,From the table\nb.v2.WAV,\n"
        root = write_tree(tmp_path / "listed", {**files, "metadata.csv": table})
        captions = [clip.caption for clip in clips(prepared("audiofolder", root, "train"))]
        assert captions == ["From the table", "A cat"]
        (root / "b.v2.TXT").write_bytes(b"\xff")
        assert "b.v2.WAV" in missing(prepared("audiofolder", root, "train"))

    def test_missing_values_are_no_text(self, tmp_path):
        rows = '{"file_name": "a.wav", "label": NaN, "text": NaN, "n": NaN, "m": 1}'
        root = write_tree(tmp_path, {"a.wav": None, "metadata.jsonl": rows})
        (clip,) = clips(prepared("audiofolder", root, "train"))
        assert (clip.label, clip.caption, clip.metadata) == (None, None, {"m": "1"})

    def test_what_metadata_and_folder_do_not_agree_on(self, tmp_path):
        root = write_tree(
            tmp_path,
            {
                "metadata.csv": "file_name,text\na.wav,A\ngone.wav,B\na.wav,C\n",
                "a.wav": None,
                "unlisted.wav": None,
            },
        )
        items = prepared("audiofolder", root, "train")
        assert [item.id for item in items] == ["a.wav", "gone.wav", "a.wav", "unlisted.wav"]
        assert missing(items) == {
            "gone.wav": "there is no file gone.wav, which metadata.csv, line 3 lists",
            "a.wav": "metadata.csv, line 4 lists it a second time",
            "unlisted.wav": "metadata.csv does not list it",
        }

    def test_metadata_of_splits_and_of_folders(self, tmp_path):
        root = write_tree(
            tmp_path,
            {
                "train/metadata.csv": "file_name,text\n1.wav,one\n",
                "train/1.wav": None,
                "test/plain/2.wav": None,
                "test/more/metadata.csv": "file_name,text\nx/3.wav,three\n",
                "test/more/x/3.wav": None,
            },
        )
        (train,) = clips(prepared("audiofolder", root, "train"))
        assert (train.id, train.caption) == ("train/1.wav", "one")
        test = clips(prepared("audiofolder", root, "test"))
        assert [(c.id, c.caption, c.label) for c in test] == [
            ("test/more/x/3.wav", "three", None), ("test/plain/2.wav", None, "plain")
        ]  # fmt: skip

    def test_metadata_of_the_root_speaks_of_its_splits(self, tmp_path):
        root = write_tree(
            tmp_path,
            {
                "metadata.csv": "file_name,text\ntest/2.wav,two\ntrain/1.wav,one\n",
                "train/1.wav": None,
                "test/2.wav": None,
                "test/4.wav": None,
            },
        )
        assert [c.caption for c in clips(prepared("audiofolder", root, "train"))] == ["one"]
        items = prepared("audiofolder", root, "test")
        assert [c.caption for c in clips(items)] == ["two"]
        assert list(missing(items)) == ["test/4.wav"]

    @pytest.mark.parametrize(
        ("name", "text", "problem"),
        [
            ("metadata.csv", "file_name\n../../x.wav\n", "line 2 names the file '../../x.wav'"),
            ("metadata.csv", "file_name\n/etc/x.wav\n", "path inside the folder, relative to it"),
            ("metadata.csv", "name\na.wav\n", "has no column file_name. Its columns: name"),
            ("metadata.csv", "file_name,a,a\na.wav,1,2\n", "has the column a twice"),
            ("metadata.csv", 'file_name\n"a"b.wav\n', "line 2: ',' expected after '\"'"),
            ("metadata.csv", "", "is empty: expected columns file_name"),
            ("metadata.jsonl", '{"file_name": "a.wav"}\n{oops\n', "line 2 is not JSON"),
            ("metadata.jsonl", '["a.wav"]\n', 'line 1 is not a JSON object: ["a.wav"]'),
            ("metadata.jsonl", '{"name": "a.wav"}\n', "line 1 has no column file_name"),
            ("metadata.jsonl", '{"file_name": "..\\\\x.wav"}\n', "path inside the folder"),
            ("metadata.parquet", "PAR?", "is not a Parquet file"),
        ],
    )
    def test_broken_metadata(self, name, text, problem, tmp_path):
        root = write_tree(tmp_path, {"a.wav": None, name: text})
        with pytest.raises(ValueError, match=name) as error:
            prepared("audiofolder", root, "train")
        assert problem in str(error.value)

    def test_two_tables(self, tmp_path):
        root = write_tree(tmp_path, {"a.wav": None, "metadata.csv": "", "metadata.jsonl": ""})
        with pytest.raises(ValueError, match=r"metadata\.csv .*metadata\.jsonl"):
            prepared("audiofolder", root, "train")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match=str(tmp_path)):
            prepared("audiofolder", tmp_path, "train")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            prepared("audiofolder", tmp_path / "nowhere", "train")
        with pytest.raises(ValueError, match=r"'test'.* train"):
            prepared("audiofolder", tmp_path, "test")

    @pytest.mark.skipif(os.name == "nt", reason="such names cannot be made there")
    def test_names_that_are_not_text(self, tmp_path):
        write_sound(tmp_path / "a.wav")
        (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"\xff.wav"))
        write_sound(tmp_path / "a.wav")
        items = prepared("audiofolder", tmp_path, "train")
        assert len(clips(items)) == 1
        assert missing(items) == {"\\udcff.wav": "its name is not text in UTF-8: rename the file"}

    def test_at_an_fsspec_address(self):
        import fsspec

        memory = fsspec.filesystem("memory")
        memory.pipe("/folder/train/dog/1.wav", sound())
        memory.pipe("/folder/test/2.wav", sound())
        memory.pipe("/folder/test/metadata.csv", b"file_name,text\n2.wav,two\n")
        try:
            (clip,) = clips(prepared("audiofolder", "memory://folder", "train"))
            assert (clip.id, clip.label) == ("train/dog/1.wav", "dog")
            assert str(clip.audio) == "memory://folder/train/dog/1.wav"
            (clip,) = clips(prepared("audiofolder", "memory://folder", "test"))
            assert clip.caption == "two"
        finally:
            memory.rm("/folder", recursive=True)


class TestWebDataset:
    def shard(self, path: Path, first: int, mode: str = "w") -> None:
        members = {}
        for number in range(first, first + 2):
            members[f"{number:04d}.flac.wav"] = sound(pitch=200 + number)
            members[f"{number:04d}.json"] = b'{"text": "%d", "label": 3, "n": [1]}' % number
            members[f"{number:04d}.cls"] = b"dog\n"
        write_tar(path, members, mode)

    def test_shards_of_a_folder(self, tmp_path):
        self.shard(tmp_path / "train-000001.tar", 2)
        self.shard(tmp_path / "train-000000.tar", 0)
        self.shard(tmp_path / "val-000000.tar", 0)
        self.shard(tmp_path / "test" / "000000.tar", 0)
        assert CORPORA["webdataset_shards"].describe(tmp_path).splits == (
            "train", "validation", "test"
        )  # fmt: skip
        items = clips(prepared("webdataset_shards", tmp_path, "train"))
        assert [item.id for item in items] == [
            "train-000000.tar/0000", "train-000000.tar/0001",
            "train-000001.tar/0002", "train-000001.tar/0003",
        ]  # fmt: skip
        first = items[0]
        assert (first.label, first.caption, first.metadata) == ("dog", "0", {"n": "[1]"})
        assert isinstance(first.audio, TarMember)
        assert items[2].read_bytes() == sound(pitch=202)
        assert len(prepared("webdataset_shards", tmp_path, "test")) == 2

    @pytest.mark.parametrize(
        ("pattern", "count"),
        [
            ("a-{0..2}.tar", 6), ("a-?.tar", 6), ("a-{0,2}.tar", 4), ("{a,b}-*.tar", 8),
            ("a-[01].tar", 4), ("sub/{00..01}.tar", 4), ("*/00.tar", 2), ("*.tar", 8),
            ("{a-0,a-0,a-*}.tar", 6),
        ],
    )  # fmt: skip
    def test_patterns(self, pattern, count, tmp_path, monkeypatch):
        for name in ("a-0", "a-1", "a-2", "b-0", "sub/00", "sub/01"):
            self.shard(tmp_path / f"{name}.tar", 0)
        items = prepared("webdataset_shards", f"{tmp_path}/{pattern}", "train")
        assert len(clips(items)) == count
        monkeypatch.chdir(tmp_path)
        assert [i.id for i in prepared("webdataset_shards", pattern, "train")] == [
            item.id for item in items
        ]

    @pytest.mark.parametrize(
        ("pattern", "problem"),
        [
            ("a-{0..3}.tar", r"a-1\.tar"),
            ("b*.tar", r"b\*\.tar"),
            ("a-{0.tar", r"'a-\{0\.tar'"),
            ("a-{3..0}.tar", r"\{3\.\.0\}"),
            ("nowhere/*.tar", "nowhere"),
        ],
    )
    def test_patterns_of_nothing(self, pattern, problem, tmp_path):
        self.shard(tmp_path / "a-0.tar", 0)
        with pytest.raises((FileNotFoundError, ValueError), match=problem):
            prepared("webdataset_shards", f"{tmp_path}/{pattern}", "train")

    def test_folders_without_shards(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            prepared("webdataset_shards", tmp_path, "train")
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "x")):
            prepared("webdataset_shards", tmp_path / "x", "train")

    def test_compressed_and_remote_shards_give_the_same(self, tmp_path):
        import fsspec

        self.shard(tmp_path / "plain" / "a.tar", 0)
        self.shard(tmp_path / "packed" / "a.tar.gz", 0, "w:gz")
        plain = clips(prepared("webdataset_shards", tmp_path / "plain", "train"))
        packed = clips(prepared("webdataset_shards", tmp_path / "packed", "train"))
        memory = fsspec.filesystem("memory")
        memory.put(str(tmp_path / "plain" / "a.tar"), "/wds/a.tar")
        try:
            remote = clips(prepared("webdataset_shards", "memory://wds/{a,a}.tar", "train"))
            for other, kind in ((packed, AudioBytes), (remote, RemoteMember)):
                assert isinstance(other[0].audio, kind)
                assert [c.read_bytes() for c in other] == [c.read_bytes() for c in plain]
                assert [c.metadata for c in other] == [c.metadata for c in plain]
            memory.pipe("/wds/a.tar", b"")
            with pytest.raises(OSError, match="cut off"):
                remote[0].read_bytes()
        finally:
            memory.rm("/wds", recursive=True)

    def test_of_remote_shards_only_headers_and_texts_are_fetched_to_list_them(self, tmp_path):
        import fsspec
        from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

        fetched = []

        class Parts(AbstractFileSystem):
            protocol, cachable = "parts", False

            def _path(self, path):
                return tmp_path / self._strip_protocol(path).lstrip("/")

            def info(self, path, **_):
                found = self._path(path)
                kind = "directory" if found.is_dir() else "file"
                return {"name": path, "type": kind, "size": found.stat().st_size}

            def ls(self, path, detail=True, **_):
                names = [f"{path.rstrip('/')}/{p.name}" for p in self._path(path).iterdir()]
                return [self.info(name) for name in names] if detail else names

            def _open(self, path, mode="rb", block_size=None, **_):
                return PartsFile(self, path, mode, block_size)

        class PartsFile(AbstractBufferedFile):
            def _fetch_range(self, start, end):
                fetched.append(end - start)
                return self.fs._path(self.path).read_bytes()[start:end]

        long = {f"{i}.wav": sound(seconds=20.0) for i in range(4)}
        write_tar(tmp_path / "wds" / "a.tar", long)
        fsspec.register_implementation("parts", Parts, clobber=True)
        found = list(find_corpus("webdataset_shards").prepare("parts://wds", "train"))
        assert sum(fetched) < 0.4 * (tmp_path / "wds" / "a.tar").stat().st_size
        assert [c.read_bytes() for c in found] == list(long.values())

    def test_texts_of_names_with_dots_and_upper_case(self, tmp_path):
        members = {
            "a.mic1.wav": sound(),
            "a.mic1.txt": b"first",
            "a.txt": b"not this one",
            "b.WAV": sound(),
            "b.TXT": b"upper",
            "b.CLS": b"dog",
            "c.wav": sound(),
            "c.meta.JSON": b'{"text": "object", "label": NaN}',
            "d.wav": sound(),
            "d.en.txt": b"one",
            "d.de.txt": b"eins",
        }
        write_tar(tmp_path / "x.tar", members)
        items = prepared("webdataset_shards", tmp_path, "train")
        assert [clip.caption for clip in clips(items)] == ["first", "upper", "object"]
        assert [clip.label for clip in clips(items)] == [None, "dog", None]
        # Which of them is meant cannot be told.
        assert "de.txt, en.txt" in missing(items)["x.tar/d"]

    def test_samples_that_are_not_as_they_should_be(self, tmp_path):
        members = {
            "a/none.txt": b"no audio",
            "a/two.mic1.wav": sound(),
            "a/two.mic2.wav": sound(),
            "a/bad.wav": sound(),
            "a/bad.json": b"{oops",
            "a/list.wav": sound(),
            "a/list.json": b"[]",
            "a/text.wav": sound(),
            "a/text.txt": b"\xff",
            "a/long.wav": sound(),
            "a/long.txt": b"x" * (2**20 + 1),
            "../../out.wav": sound(),
            "a/good.wav": sound(),
            "a/two.txt": b"too late",
        }
        write_tar(tmp_path / "x.tar", members)
        items = prepared("webdataset_shards", tmp_path, "train")
        assert [clip.id for clip in clips(items)] == ["x.tar/a/good"]
        reasons = missing(items)
        assert reasons["x.tar/a/none"] == "it has no audio, only txt"
        assert "its .json cannot be read" in reasons["x.tar/a/bad"]
        assert reasons["x.tar/a/list"] == "its .json is not an object"
        assert reasons["x.tar/a/text"] == "its .txt is not text in UTF-8"
        assert "longer than 1,048,576 bytes" in reasons["x.tar/a/long"]
        assert reasons["x.tar/../../out"] == "its name leads out of the archive"
        first, second = (item.reason for item in items if item.id == "x.tar/a/two")
        assert first == "it has several pieces of audio (mic1.wav, mic2.wav): use the option audio"
        assert second == "a/two comes a second time, after other samples"
        items = prepared("webdataset_shards", tmp_path, "train", audio="mic2.wav")
        (chosen,) = clips(items)
        assert chosen.id == "x.tar/a/two"

    @pytest.mark.parametrize(
        # In the first header, between two samples, in the second one.
        ("ending", "kept", "whole"),
        [("tar", 0, 0), ("tar", 100, 0), ("tar", 3584, 0), ("tar", 4400, 1), ("tar.gz", 300, 0)],
    )
    def test_shards_that_are_cut_off(self, ending, kept, whole, tmp_path):
        mode = "w:gz" if ending == "tar.gz" else "w"
        self.shard(tmp_path / f"a.{ending}", 0, mode)
        self.shard(tmp_path / f"b.{ending}", 0, mode)
        cut = tmp_path / f"a.{ending}"
        cut.write_bytes(cut.read_bytes()[:kept])
        items = prepared("webdataset_shards", tmp_path, "train")
        assert list(missing(items)) == [f"a.{ending}"]
        assert missing(items)[f"a.{ending}"].startswith(f"damaged after {whole} whole samples: ")
        ids = [f"{name}.{ending}/{n:04d}" for name, n in [("a", 0), ("b", 0), ("b", 1)]]
        assert [clip.id for clip in clips(items)] == ids[1 - whole :]

    def test_memory_does_not_grow_with_the_shards(self, tmp_path):
        members = {f"{number:04d}.wav": os.urandom(2**18) for number in range(40)}
        for mode in ("w", "w:gz"):
            name = "a.tar" if mode == "w" else "b.tar.gz"
            write_tar(tmp_path / name, members, mode)
            tracemalloc.start()
            count = 0
            for _ in CORPORA["webdataset_shards"].prepare(f"{tmp_path}/{name[0]}*", "train"):
                count += 1
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert count == 40
            assert peak < 2**18 * (1 if mode == "w" else 10)

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_number_of_members(self, tmp_path):
        peaks = []
        for count in (500, 3000):
            write_tar(tmp_path / "a.tar", {f"{number:06d}.wav": b"x" for number in range(count)})
            tracemalloc.start()
            assert sum(1 for _ in CORPORA["webdataset_shards"].prepare(tmp_path, "train")) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        # The ids of one shard are kept, to see whether one comes twice.
        assert peaks[1] - peaks[0] < 2500 * 150


class TestHubDataset:
    @pytest.fixture
    def datasets(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        return datasets

    def make(self, datasets, tmp_path):
        write_sound(tmp_path / "on_disk.wav")
        table = {
            "sound": [
                {"bytes": sound(), "path": "x.wav"},
                {"bytes": None, "path": str(tmp_path / "on_disk.wav")},
                None,
                {"bytes": sound(), "path": None},
            ],
            "label": [1, 0, -1, None],
            "sentence": ["Woof", None, "Nothing", ""],
            "speaker": [None, None, 7, None],
            "picture": 4 * [b"png"],
            "key": ["a", "b", "c", "a"],
        }
        made = datasets.Dataset.from_dict(table)
        made = made.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
        return made.cast_column("sound", datasets.Audio())

    def check(self, root, split, **options):
        items = prepared("hub_dataset", root, split, **options)
        assert missing(items) == {"000000002": "row 2 has no audio"}
        first, second, last = clips(items)
        assert (first.id, first.label, first.caption) == ("000000000", "dog", "Woof")
        assert first.metadata == {"key": "a"}
        assert first.read_bytes() == sound()
        assert (second.label, second.caption) == ("cat", None)
        assert second.metadata == {"key": "b"}
        assert (last.id, last.label, last.caption) == ("000000003", None, None)

    def test_saved_to_disk(self, datasets, tmp_path):
        made = self.make(datasets, tmp_path)
        made.save_to_disk(tmp_path / "one")
        self.check(tmp_path / "one", "train")
        datasets.DatasetDict({"dev": made, "test": made}).save_to_disk(tmp_path / "more")
        self.check(tmp_path / "more", "dev")
        corpus = CORPORA["hub_dataset"]
        info = corpus.describe(tmp_path / "more")
        assert (info.splits, info.title) == (("dev", "test"), "more")
        assert corpus.download(tmp_path / "more", ["test"]) == tmp_path / "more"
        with pytest.raises(ValueError, match=r"'train'.* dev, test"):
            prepared("hub_dataset", tmp_path / "more", "train")

    @pytest.mark.parametrize("streaming", ["true", "false"])
    def test_loaded_by_datasets(self, datasets, streaming, tmp_path):
        (tmp_path / "repo" / "data").mkdir(parents=True)
        self.make(datasets, tmp_path).to_parquet(tmp_path / "repo/data/train-0.parquet")
        root = str(tmp_path / "repo")
        assert CORPORA["hub_dataset"].describe(root).splits == ("train",)
        self.check(root, "train", streaming=streaming)

    def test_files_are_streamed_without_torchcodec(self, datasets, tmp_path):
        # As JSON: `datasets` leaves CSV files open, of which Python then warns.
        table = '{"file_name": "a.wav", "text": "A"}\n{"file_name": "b.wav", "text": "B"}\n'
        files = {"train/a.wav": None, "train/b.wav": None, "train/metadata.jsonl": table}
        root = write_tree(tmp_path / "repo", files)
        first, second = clips(prepared("hub_dataset", root, "train", streaming="true"))
        assert (first.caption, second.caption) == ("A", "B")
        assert first.read_bytes() == (root / "train/a.wav").read_bytes()
        # Of `datasets`, version 4.0 makes a table of such files without it too.
        oldest = datasets.__version__.startswith("4.0")
        if importlib.util.find_spec("torchcodec") is None and not oldest:
            with pytest.raises(ImportError, match=r"torchcodec.*streaming=true"):
                prepared("hub_dataset", root, "train")
        else:
            assert len(clips(prepared("hub_dataset", root, "train"))) == 2

    def test_columns(self, datasets, tmp_path):
        self.make(datasets, tmp_path).save_to_disk(tmp_path / "one")
        root = tmp_path / "one"
        items = prepared(
            "hub_dataset",
            root,
            "train",
            id_column="key",
            caption_column="key",
            label_column="speaker",
        )
        assert [c.id for c in clips(items)] == ["a", "b"]
        assert missing(items) == {
            "c": "row 2 has no audio",
            "000000003": "its key 'a' is there a second time",
        }
        first = clips(items)[0]
        assert (first.caption, first.label) == ("a", None)
        assert first.metadata == {"label": "dog", "sentence": "Woof"}
        for option in ("audio_column", "caption_column", "id_column"):
            with pytest.raises(ValueError, match=r"'nope'.*'sound'"):
                prepared("hub_dataset", root, "train", **{option: "nope"})
        with pytest.raises(ValueError, match="streaming='yes'"):
            prepared("hub_dataset", root, "train", streaming="yes")

    def test_without_audio(self, datasets, tmp_path):
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "one")
        with pytest.raises(ValueError, match=r"\['text'\].*audio_column"):
            prepared("hub_dataset", tmp_path / "one", "train")
