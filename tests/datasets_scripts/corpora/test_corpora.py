"""Corpora of fixed layouts, on small trees of that layout, whole and broken."""

from __future__ import annotations

import pickle
import re
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from corpora_trees import TRACKS, clips, esc50, librispeech, missing, prepared, write_tree

from datasets_scripts.corpora import CORPORA
from datasets_scripts.sources.corpus import (
    AudioBytes,
    Corpus,
    CorpusClip,
    CorpusInfo,
    Missing,
    TarMember,
)
from datasets_scripts.sources.tree import Tree, checked_name

DOCS = Path(__file__).parents[3] / "docs" / "corpora.md"


def ljspeech(root: Path) -> Path:
    text = 'LJ001-0001|In 1455, "printing|In fourteen fifty-five, "printing\n'
    return write_tree(
        root,
        {
            "LJSpeech-1.1/metadata.csv": text + "LJ001-0002|produced.|produced.\n",
            "LJSpeech-1.1/wavs/LJ001-0001.wav": None,
            "LJSpeech-1.1/wavs/LJ001-0002.wav": None,
        },
    )


def vctk(root: Path) -> Path:
    audio = "wav48_silence_trimmed"
    return write_tree(
        root,
        {
            "speaker-info.txt": "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
            "p225  23  F    English    Southern  England\n"
            "p280  25  F    Unknown    France  (mic2 files unavailable)\n"
            "p315  18  M    American   New England  (Text and mic2 files unavailable)\n",
            f"{audio}/log.txt": "",
            f"{audio}/p225/p225_001_mic1.flac": None,
            f"{audio}/p225/p225_001_mic2.flac": None,
            "txt/p225/p225_001.txt": "Please call Stella.\n",
            f"{audio}/p280/p280_001_mic1.flac": None,
            "txt/p280/p280_001.txt": "Please call Stella.\n",
            f"{audio}/p315/p315_001_mic1.flac": None,
        },
    )


def fsd50k(root: Path) -> Path:
    info = (
        '{"64760": {"title": "guitar.wav", "license": "CC0", "uploader": "casualdave", "tags": []}}'
    )
    return write_tree(
        root,
        {
            "FSD50K.ground_truth/vocabulary.csv": "0,Electric_guitar,/m/02sgy\n"
            "1,Guitar,/m/0342h\n2,Burping_and_eructation,/m/03q5_w\n",
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n'
            "21914,Guitar,/m/0342h,val\n",
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n"
            "37199,Burping_and_eructation,/m/03q5_w\n",
            "FSD50K.metadata/dev_clips_info_FSD50K.json": info,
            "FSD50K.dev_audio/64760.wav": None,
            "FSD50K.dev_audio/21914.wav": None,
            "FSD50K.eval_audio/37199.wav": None,
        },
    )


def fma(root: Path) -> Path:
    audio = {f"fma_small/000/{name}.mp3": None for name in ("000002", "000005", "000145")}
    return write_tree(root, {"fma_metadata/tracks.csv": TRACKS} | audio)


TREES = {
    "esc50": (esc50, "fold1"),
    "librispeech": (librispeech, "dev-clean"),
    "ljspeech": (ljspeech, "train"),
    "vctk": (vctk, "train"),
    "fsd50k": (fsd50k, "train"),
    "fma": (fma, "training"),
}


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_every_corpus_keeps_the_interface(name):
    module = CORPORA[name]
    assert isinstance(module, Corpus)
    info = module.INFO
    assert set(info.choices) <= set(info.options)
    assert info.name == name
    assert info.title
    assert info.licence
    assert info.homepage.startswith("https://")
    for download in info.downloads:
        assert download.url.startswith("https://")
        assert set(download.splits) <= set(info.splits)
        algorithm, _, digits = (download.checksum or "md5:" + 32 * "0").partition(":")
        assert len(digits) == {"md5": 32, "sha1": 40, "sha256": 64}[algorithm]
        assert re.fullmatch("[0-9a-f]+", digits)
    assert len({download.name for download in info.downloads}) == len(info.downloads)


def test_table_of_corpora_imports_nothing_before_it_is_asked():
    assert "no such corpus" not in CORPORA
    assert len(CORPORA) == len(list(CORPORA)) == 11
    with pytest.raises(KeyError):
        CORPORA["no such corpus"]


@pytest.mark.parametrize("name", TREES)
def test_whole_tree(name, tmp_path):
    make, split = TREES[name]
    root = make(tmp_path)
    items = prepared(name, root, split)
    assert clips(items)
    assert not missing(items)
    assert len({item.id for item in items}) == len(items)
    assert split in CORPORA[name].describe(root).splits
    # Clips go to other processes and machines.
    assert pickle.loads(pickle.dumps(items)) == items
    # Nothing is fetched: there is no network in tests, and it is all there.
    assert CORPORA[name].download(root, [split]) == root


@pytest.mark.parametrize("name", TREES)
def test_ids_are_those_of_another_machine(name, tmp_path):
    make, split = TREES[name]
    here = prepared(name, make(tmp_path / "here"), split)
    there = prepared(name, make(tmp_path / "somewhere" / "else"), split)
    assert [item.id for item in here] == [item.id for item in there]


@pytest.mark.parametrize("name", TREES)
def test_other_splits_and_folders_are_refused(name, tmp_path):
    make, split = TREES[name]
    root = make(tmp_path / "root")
    with pytest.raises(ValueError, match="'tests'"):
        prepared(name, root, "tests")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        prepared(name, tmp_path / "empty", split)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CORPORA[name].describe(tmp_path / "nowhere")


@pytest.mark.parametrize("name", TREES)
def test_what_is_listed_and_not_there_is_reported(name, tmp_path):
    make, split = TREES[name]
    root = make(tmp_path)
    whole = prepared(name, root, split)
    assert isinstance(whole[0], CorpusClip)
    assert isinstance(whole[0].audio, Path)
    whole[0].audio.unlink()
    items = prepared(name, root, split)
    assert [item.id for item in items] == [item.id for item in whole]
    assert list(missing(items)) == [whole[0].id]
    assert "there is no file" in missing(items)[whole[0].id]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("esc50", "meta/esc50.csv"),
        ("fsd50k", "FSD50K.ground_truth/dev.csv"),
        ("fma", "fma_metadata/tracks.csv"),
        ("ljspeech", "LJSpeech-1.1/metadata.csv"),
    ],
)
class TestTables:
    def lines(self, root, table):
        return (root / table).read_text().splitlines(keepends=True)

    def test_broken_rows_are_named(self, name, table, tmp_path):
        make, split = TREES[name]
        root = make(tmp_path)
        number = len((root / table).read_text().splitlines()) + 1
        with (root / table).open("a") as file:
            file.write("just one cell\n")
        with pytest.raises(ValueError, match=rf"{Path(table).name}, line {number}\b"):
            prepared(name, root, split)

    def test_not_text(self, name, table, tmp_path):
        make, split = TREES[name]
        root = make(tmp_path)
        with (root / table).open("ab") as file:
            file.write(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=rf"{Path(table).name}.*UTF-8"):
            prepared(name, root, split)

    def test_a_row_twice_is_reported(self, name, table, tmp_path):
        make, split = TREES[name]
        root = make(tmp_path)
        before = prepared(name, root, split)
        last = self.lines(root, table)[-1]
        if name == "fsd50k":
            last = last.replace("val", "train")  # The same clip in two rows of one split.
            (root / table).write_text("".join(self.lines(root, table)[:-1]) + last)
            before = prepared(name, root, split)
        if name == "esc50":
            last = self.lines(root, table)[1]
        with (root / table).open("a") as file:
            file.write(last)
        items = prepared(name, root, split)
        assert items[:-1] == before
        assert isinstance(items[-1], Missing)
        assert items[-1].id in {item.id for item in before}
        assert "a second time" in items[-1].reason

    def test_a_missing_column_or_nothing_at_all(self, name, table, tmp_path):
        make, split = TREES[name]
        root = make(tmp_path)
        (root / table).write_text("" if name != "ljspeech" else "a|b\n")
        with pytest.raises(ValueError, match=Path(table).name):
            prepared(name, root, split)
        if name in ("esc50", "fsd50k"):
            (root / table).write_text("a,b\n1,2\n")
            with pytest.raises(ValueError, match=r" f\w+,.* a, b"):
                prepared(name, root, split)


@pytest.mark.parametrize(
    ("name", "table", "row"),
    [
        ("esc50", "meta/esc50.csv", "../../x.wav,1,0,dog,True,1,A\n"),
        ("fsd50k", "FSD50K.ground_truth/dev.csv", "/etc/passwd,Guitar,/m/0342h,train\n"),
        ("ljspeech", "LJSpeech-1.1/metadata.csv", "..\\..\\x|a|b\n"),
        ("fma", "fma_metadata/tracks.csv", "../2,A,A,training,small,Rock,CC BY,B\n"),
    ],
)
def test_paths_out_of_the_tree_are_refused(name, table, row, tmp_path):
    make, split = TREES[name]
    root = make(tmp_path)
    with (root / table).open("a") as file:
        file.write(row)
    with pytest.raises(ValueError, match=rf"{Path(table).name}, line \d+"):
        prepared(name, root, split)


@pytest.mark.parametrize(
    "name", ["", " ", "../x", "a/../../x", "/x", "C:\\x", "\\x", "s3://x", "a\0"]
)
def test_checked_name_refuses(name):
    with pytest.raises(ValueError, match="somewhere"):
        checked_name(name, "somewhere")


def test_checked_name_cleans():
    assert checked_name("./a//b\\c..d.wav", "here") == "a/b/c..d.wav"


def test_esc50(tmp_path):
    (clip,) = clips(prepared("esc50", esc50(tmp_path), "fold1"))
    assert (clip.id, clip.label, clip.caption) == ("1-100032-A-0", "dog", None)
    assert clip.metadata == {"esc10": "True", "freesound_id": "100032"}
    # Every clip is in one fold.
    folds = [prepared("esc50", tmp_path, f"fold{n}") for n in range(1, 6)]
    assert [len(fold) for fold in folds] == [1, 1, 0, 0, 0]
    with (tmp_path / "meta/esc50.csv").open("a") as file:
        file.write("x.wav,6,0,dog,True,1,A\n")
    with pytest.raises(ValueError, match=r"line 4: .*'fold6'"):
        prepared("esc50", tmp_path, "fold1")


def test_esc50_as_its_archive_unpacks(tmp_path):
    esc50(tmp_path / "ESC-50-master")
    assert len(prepared("esc50", tmp_path, "fold2")) == 1


def test_librispeech(tmp_path):
    root = librispeech(tmp_path)
    items = clips(prepared("librispeech", root, "dev-clean"))
    assert [item.id for item in items] == ["174-50561-0000", "84-121123-0000", "84-121123-0001"]
    assert [item.label for item in items] == ["174", "84", "84"]
    assert items[1].caption == "GO DO YOU HEAR"
    assert items[1].metadata == {"speaker": "84", "chapter": "121123", "sex": "F"}
    assert items[0].metadata == {"speaker": "174", "chapter": "50561"}
    assert CORPORA["librispeech"].describe(root).splits == ("dev-clean",)
    with pytest.raises(FileNotFoundError, match="test-clean"):
        prepared("librispeech", root, "test-clean")
    # The folder inside may be named too.
    assert [item.id for item in prepared("librispeech", root / "LibriSpeech", "dev-clean")] == [
        item.id for item in items
    ]


def test_librispeech_without_transcripts(tmp_path):
    root = librispeech(tmp_path)
    chapter = root / "LibriSpeech/dev-clean/84/121123"
    text = chapter / "84-121123.trans.txt"
    text.write_text("84-121123-0000 GO DO YOU HEAR\n")
    items = prepared("librispeech", root, "dev-clean")
    assert list(missing(items)) == ["84-121123-0001"]
    assert "has no line for it" in missing(items)["84-121123-0001"]
    text.unlink()
    assert len(missing(prepared("librispeech", root, "dev-clean"))) == 2
    for broken in ("84-121123-0000\n", "84-121123-0000 A\n84-121123-0000 B\n", "GO DO YOU HEAR\n"):
        text.write_text(broken)
        with pytest.raises(ValueError, match=r"84-121123\.trans\.txt, line [12]"):
            prepared("librispeech", root, "dev-clean")


def test_ljspeech_keeps_quotation_marks(tmp_path):
    first, second = clips(prepared("ljspeech", ljspeech(tmp_path), "train"))
    assert first.id == "LJ001-0001"
    assert first.caption == 'In fourteen fifty-five, "printing'
    assert first.metadata == {"transcript": 'In 1455, "printing'}
    assert second.label is None


def test_vctk(tmp_path):
    root = vctk(tmp_path)
    items = clips(prepared("vctk", root, "train"))
    assert [item.id for item in items] == ["p225_001_mic1", "p280_001_mic1", "p315_001_mic1"]
    assert [item.caption for item in items] == ["Please call Stella.", "Please call Stella.", None]
    assert items[0].metadata == {
        "speaker": "p225", "age": "23", "gender": "F", "accent": "English",
        "region": "Southern  England",
    }  # fmt: skip
    assert items[1].metadata["region"] == "France"
    assert items[2].metadata["accent"] == "American"
    # p280 and p315 have no second microphone, which is no failure.
    assert [item.id for item in prepared("vctk", root, "train", mic="mic2")] == ["p225_001_mic2"]
    with pytest.raises(ValueError, match="mic='mic3'"):
        prepared("vctk", root, "train", mic="mic3")


def test_fsd50k(tmp_path):
    root = fsd50k(tmp_path)
    (clip,) = clips(prepared("fsd50k", root, "train"))
    assert (clip.id, clip.label) == ("64760", "Electric_guitar")
    assert clip.metadata == {
        "labels": "Electric_guitar,Guitar", "mids": "/m/02sgy,/m/0342h",
        "title": "guitar.wav", "license": "CC0", "uploader": "casualdave",
    }  # fmt: skip
    assert [item.id for item in prepared("fsd50k", root, "val")] == ["21914"]
    (other,) = clips(prepared("fsd50k", root, "eval"))
    assert other.id == "37199"
    assert set(other.metadata) == {"labels", "mids"}
    shutil.rmtree(root / "FSD50K.eval_audio")
    assert CORPORA["fsd50k"].describe(root).splits == ("train", "val")
    with pytest.raises(FileNotFoundError, match=r"FSD50K\.eval_audio.*'eval'"):
        prepared("fsd50k", root, "eval")


def test_fsd50k_checks_what_it_reads(tmp_path):
    root = fsd50k(tmp_path)
    truth = root / "FSD50K.ground_truth"
    with (truth / "dev.csv").open("a") as file:
        file.write("1,Theremin,/m/0,val\n")
    with pytest.raises(ValueError, match=r"line 4: 'Theremin' .*vocabulary\.csv"):
        prepared("fsd50k", root, "val")
    (root / "FSD50K.metadata/eval_clips_info_FSD50K.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"eval_clips_info_FSD50K\.json"):
        prepared("fsd50k", root, "eval")
    (truth / "vocabulary.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"vocabulary\.csv"):
        prepared("fsd50k", root, "eval")


def test_fma(tmp_path):
    root = fma(tmp_path)
    first, second = clips(prepared("fma", root, "training"))
    assert (first.id, first.label) == ("000002", "Hip-Hop")
    assert first.metadata == {
        "title": "Food", "artist": "AWOL", "license": "Attribution-NonCommercial 3.0",
        "subset": "small",
    }  # fmt: skip
    assert second.id == "000145"
    assert [item.id for item in prepared("fma", root, "validation")] == ["000005"]
    assert prepared("fma", root, "test") == []


def test_fma_subsets_hold_the_smaller_ones(tmp_path):
    root = fma(tmp_path)
    (root / "fma_small").rename(root / "fma_large")
    items = prepared("fma", root, "training")
    assert [item.id for item in items] == ["000002", "000003", "000134", "000145"]
    assert set(missing(items)) == {"000003", "000134"}
    write_tree(root, {"fma_medium/000/000003.mp3": None})
    with pytest.raises(ValueError, match=r"medium, large.*subset"):
        prepared("fma", root, "training")
    items = prepared("fma", root, "training", subset="medium")
    assert [item.id for item in clips(items)] == ["000003"]
    with pytest.raises(ValueError, match="subset='tiny'"):
        prepared("fma", root, "training", subset="tiny")
    with pytest.raises(FileNotFoundError, match="fma_full"):
        prepared("fma", root, "training", subset="full")


def test_clip_checks_itself(tmp_path):
    with pytest.raises(ValueError, match="id"):
        CorpusClip("", tmp_path)
    with pytest.raises(ValueError, match=r"'a' .*-1 s"):
        CorpusClip("a", tmp_path, start=-1)
    with pytest.raises(ValueError, match=r"'a' .*1 s"):
        CorpusClip("a", tmp_path, start=1.0, end=1)
    assert CorpusClip("a", AudioBytes(b"x", "name")).read_bytes() == b"x"


def test_an_archive_that_became_shorter(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"12345")
    member = TarMember(tmp_path / "a.tar", 2, 3, "x.wav")
    assert member.read_bytes() == b"345"
    (tmp_path / "a.tar").write_bytes(b"1234")
    with pytest.raises(OSError, match=r"x\.wav .*2 bytes of 3"):
        member.read_bytes()


def test_corpora_are_read_from_fsspec_addresses(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(librispeech(tmp_path)) + "/", "/corpora/libri/", recursive=True)
    try:
        address = "memory://corpora/libri"
        far = prepared("librispeech", address, "dev-clean")
        near = prepared("librispeech", tmp_path, "dev-clean")
        assert [(c.id, c.caption) for c in clips(far)] == [(c.id, c.caption) for c in clips(near)]
        assert [c.read_bytes() for c in clips(far)] == [c.read_bytes() for c in clips(near)]
        memory.rm("/corpora/libri/LibriSpeech/dev-clean/174/50561/174-50561-0000.flac")
        assert list(missing(prepared("librispeech", address, "dev-clean"))) == ["174-50561-0000"]
    finally:
        memory.rm("/corpora", recursive=True)


def test_hidden_files_and_links(tmp_path):
    write_tree(tmp_path, {".DS_Store": "", "._a.wav": "", "b/c.txt": "", "a.txt": ""})
    assert list(Tree(tmp_path).walk()) == ["a.txt", "b/c.txt"]
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    # A folder is listed once, however it can be reached.
    assert list(Tree(tmp_path).walk()) == ["a.txt", "b/c.txt"]


def test_info_refuses_unknown_splits():
    with pytest.raises(ValueError, match=r"X .*'a'.* b, c"):
        CorpusInfo("x", "X", "", "", splits=("b", "c")).check_split("a")


def test_docs_know_every_corpus_and_option():
    text = DOCS.read_text(encoding="utf-8")
    for name, module in CORPORA.items():
        rows = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 2, name
        for split in module.INFO.splits:
            assert split in rows[0] or split.startswith("fold"), (name, split)
        for option in module.INFO.options:
            assert f"{option}=" in rows[1], (name, option)


def test_the_corpus_of_the_docs(tmp_path):
    code = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    spec = spec_from_file_location("mine", tmp_path / "mine.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    mine = module.CORPUS
    assert isinstance(mine, Corpus)
    table = "file,split,text\na.wav,train,A\nb.wav,test,B\nc.wav,train,C\n"
    root = write_tree(tmp_path / "root", {"index.csv": table, "a.wav": None, "b.wav": None})
    items = list(mine.prepare(root, "train"))
    assert [clip.caption for clip in clips(items)] == ["A"]
    assert list(missing(items)) == ["c.wav"]
    assert mine.download(root) == root
