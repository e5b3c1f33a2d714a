"""Corpora of captions whose audio users collect themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora_trees import clips, missing, prepared, write_tree

from datasets_scripts.corpora import CORPORA

CAPS = "audiocap_id,youtube_id,start_time,caption\n"
MUSIC = (
    "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
    "is_balanced_subset,is_audioset_eval\n"
)


def audiocaps(root: Path, audio: str = "audio/test/-AheI8Epim4_30.wav") -> Path:
    test = [
        '1,-AheI8Epim4,30,"Rain falls, and falls"',
        "2,-AheI8Epim4,30,Rain",
        "3,_9mgOkzm-xg,0,A dog barks",
        "4,-AheI8Epim4,50,Later",
    ]
    return write_tree(
        root,
        {
            "train.csv": CAPS + "91139,r1nicOVtvkQ,130,A woman talks\n",
            "test.csv": CAPS + "\n".join(test) + "\n",
            "audio/train/r1nicOVtvkQ.wav": None,
            audio: None,
        },
    )


def musiccaps(root: Path) -> Path:
    rows = [
        '-0Gj8-vB1q4,30,40,"/m/0140xf","[\'low\', \'ballad\']","A ballad, sad.",4,False,True',
        "-0SdAVK79lg,30,40,/m/0155w,['guitar'],A guitar.,0,False,False",
        "-0vPFx-wRRI,30,40,/m/025_jnm,['male'],A man.,6,False,True",
    ]
    table = MUSIC + "\n".join(rows) + "\n"
    sounds = {"wav/-0Gj8-vB1q4.wav": None, "wav/[-0SdAVK79lg]-[30-40].wav": None}
    return write_tree(root, {"musiccaps-public.csv": table} | sounds)


def test_audiocaps(tmp_path):
    root = audiocaps(tmp_path)
    items = prepared("audiocaps", root, "test")
    assert [item.id for item in items] == ["-AheI8Epim4_30", "_9mgOkzm-xg_0", "-AheI8Epim4_50"]
    (clip,) = clips(items)
    assert clip.caption == "Rain falls, and falls"
    assert json.loads(clip.metadata["captions"]) == ["Rain falls, and falls", "Rain"]
    assert clip.metadata["youtube_id"] == "-AheI8Epim4"
    assert (clip.start, clip.end) == (None, None)
    assert missing(items) == {
        "_9mgOkzm-xg_0": "there is no audio of video _9mgOkzm-xg from 0 s on",
        "-AheI8Epim4_50": "there is no audio of video -AheI8Epim4 from 50 s on",
    }
    assert CORPORA["audiocaps"].describe(root).splits == ("train", "test")
    with pytest.raises(FileNotFoundError, match=r"val\.csv.*'val'"):
        prepared("audiocaps", root, "val")


def test_audiocaps_a_clip_for_each_caption(tmp_path):
    items = clips(prepared("audiocaps", audiocaps(tmp_path), "test", captions="each"))
    assert [item.id for item in items] == ["-AheI8Epim4_30#1", "-AheI8Epim4_30#2"]
    assert [item.caption for item in items] == ["Rain falls, and falls", "Rain"]
    with pytest.raises(ValueError, match="captions='all'"):
        prepared("audiocaps", tmp_path, "test", captions="all")


@pytest.mark.parametrize(
    "name", ["X_30.flac", "X_30_40.wav", "X_30000_40000.wav", "[X]-[30-40].ogg"]
)
def test_excerpts_by_their_usual_names(name, tmp_path):
    name = name.replace("X", "-AheI8Epim4")
    root = audiocaps(tmp_path, f"elsewhere/{name}")
    for files in ("cut", "whole"):
        (clip,) = clips(prepared("audiocaps", root, "test", files=files))
        assert clip.start is None
        assert str(clip.audio).endswith(name)


@pytest.mark.parametrize("name", ["-AheI8Epim4.wav", "Y-AheI8Epim4.wav"])
def test_whole_videos_are_cut_when_asked(name, tmp_path):
    root = audiocaps(tmp_path, name)
    found = clips(prepared("audiocaps", root, "test", files="whole"))
    assert [(c.id, c.start, c.end) for c in found] == [
        ("-AheI8Epim4_30", 30.0, 40.0), ("-AheI8Epim4_50", 50.0, 60.0)
    ]  # fmt: skip
    # Otherwise such a file can be only one excerpt.
    items = prepared("audiocaps", root, "test")
    (clip,) = clips(items)
    assert (clip.id, clip.start) == ("-AheI8Epim4_30", None)
    assert missing(items)["-AheI8Epim4_50"] == (
        f"{name} is taken for the excerpt from 30 s on: see the option files"
    )
    with pytest.raises(ValueError, match="files='all'"):
        prepared("audiocaps", root, "test", files="all")


def test_files_of_the_same_name(tmp_path):
    root = write_tree(audiocaps(tmp_path), {"audio/train/-AheI8Epim4_30.wav": None})
    (clip,) = clips(prepared("audiocaps", root, "test"))
    assert "/test/" in str(clip.audio)
    write_tree(root, {"audio/test/more/-AheI8Epim4_30.wav": None})
    reason = missing(prepared("audiocaps", root, "test"))["-AheI8Epim4_30"]
    assert reason.startswith("several files have its name: audio/test/")


def test_audio_in_another_folder(tmp_path):
    root = write_tree(tmp_path / "a", {"train.csv": CAPS + "1,xyz,130,A woman talks\n"})
    write_tree(tmp_path / "b", {"xyz.wav": None})
    (item,) = prepared("audiocaps", root, "train")
    assert missing([item])
    (clip,) = clips(prepared("audiocaps", root, "train", audio=str(tmp_path / "b")))
    assert clip.id == "xyz_130"
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "c")):
        prepared("audiocaps", root, "train", audio=str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("5,../../x,30,A", "'../../x' is not the id of a video"),
        ("5,,30,A", "'' is not the id of a video"),
        ("5,abc,soon,A", "'soon' is not a time in seconds"),
        ("5,abc,-1,A", "'-1' is not a time in seconds"),
        ("5,abc,nan,A", "'nan' is not a time in seconds"),
        ("5,abc,30", "3 cells, but there are 4 columns"),
        ('5,abc,30,"A', "line 6: unexpected end of data. Is it a CSV file"),
    ],
)
def test_broken_audiocaps(row, problem, tmp_path):
    root = audiocaps(tmp_path)
    with (root / "test.csv").open("a") as file:
        file.write(row)
    with pytest.raises(ValueError, match=r"test\.csv, line 6") as error:
        prepared("audiocaps", root, "test")
    assert problem in str(error.value)


def test_a_caption_twice(tmp_path):
    root = audiocaps(tmp_path)
    with (root / "test.csv").open("a") as file:
        file.write("1,-AheI8Epim4,30,Rain again\n")
    items = prepared("audiocaps", root, "test")
    assert missing(items)["-AheI8Epim4_30#1"] == (
        "test.csv, line 6 lists the caption 1 a second time"
    )
    assert len(clips(items)) == 1


def test_musiccaps(tmp_path):
    root = musiccaps(tmp_path)
    items = prepared("musiccaps", root, "eval")
    (clip,) = clips(items)
    assert (clip.id, clip.caption, clip.start) == ("-0Gj8-vB1q4_30", "A ballad, sad.", None)
    assert clip.metadata["aspect_list"] == "['low', 'ballad']"
    assert list(missing(items)) == ["-0vPFx-wRRI_30"]
    (other,) = clips(prepared("musiccaps", root, "train"))
    assert other.id == "-0SdAVK79lg_30"
    (whole,) = clips(prepared("musiccaps", root, "eval", files="whole"))
    assert (whole.start, whole.end) == (30.0, 40.0)
    with (root / "musiccaps-public.csv").open("a") as file:
        file.write("-0Gj8-vB1q4,30,40,x,x,x,4,False,True\n")
    items = prepared("musiccaps", root, "eval")
    assert missing(items)["-0Gj8-vB1q4_30"] == "musiccaps-public.csv, line 5 lists it a second time"


def test_any_table_like_musiccaps(tmp_path):
    root = musiccaps(tmp_path)
    write_tree(
        root,
        {"mine.csv": "caption,ytid,start_s,end_s\nDrums.,a-b_c,1.5,3\n", "a-b_c_1.5.wav": None},
    )
    (clip,) = clips(prepared("musiccaps", root, "train", table="mine.csv"))
    assert (clip.id, clip.caption) == ("a-b_c_1.5", "Drums.")
    assert CORPORA["musiccaps"].describe(root, table="mine.csv").splits == ("train",)
    with pytest.raises(ValueError, match=r"'\.\./mine\.csv'"):
        prepared("musiccaps", root, "train", table="../mine.csv")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a,40,30,x,x,x,4,False,True", "ends at 30 s, before it begins"),
        ("a,30,40,x,x,x,4,False,maybe", "is_audioset_eval is 'maybe'"),
    ],
)
def test_broken_musiccaps(row, problem, tmp_path):
    root = musiccaps(tmp_path)
    with (root / "musiccaps-public.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(ValueError, match="line 5") as error:
        prepared("musiccaps", root, "eval")
    assert problem in str(error.value)
