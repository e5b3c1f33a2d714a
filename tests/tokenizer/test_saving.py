"""Files, folders and tensors are written as a whole or not at all."""

import os
import signal
import stat
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tokenizer.command import run_command
from tokenizer.errors import FileError
from tokenizer.saving import (
    checksum,
    run_folder,
    save_tensors,
    whole_folder,
    write_json,
    write_text,
    writing,
    writing_files,
    writing_folder,
)


class Stop(Exception):
    pass


def half_write(context):
    with context as path:
        (path / "b.txt" if path.is_dir() else path).write_text("half")
        raise Stop


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_error_leaves_what_was_there(tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    write_text(file, "before")
    with writing_folder(folder) as new:
        write_text(new / "b.txt", "before")
    before = content(tmp_path)
    for context, target in ((writing, file), (writing_folder, folder), (writing_files, folder)):
        with pytest.raises(Stop):
            half_write(context(target))
    assert content(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_what_was_there_is_replaced(tmp_path):
    for text in ("first", "second"):
        write_text(tmp_path / "a.txt", text)
        write_json(tmp_path / "a.json", {"a": text})
        with writing_folder(tmp_path / "folder") as new:
            (new / text).write_text(text)
        with writing_files(tmp_path / "files") as new:
            (new / text).write_text(text)
            (new / "config.json").write_text(text)
    assert content(tmp_path) == {
        "a.txt": "second",
        "a.json": '{\n "a": "second"\n}\n',
        "folder/second": "second",
        "files/first": "first",
        "files/second": "second",
        "files/config.json": "second",
    }


def test_the_previous_folder_is_found_between_the_two_renames(tmp_path):
    assert whole_folder(tmp_path / "a") is None
    with writing_folder(tmp_path / "a") as new:
        (new / "x").write_text("1")
    (tmp_path / "a").rename(tmp_path / "a.old")
    previous = whole_folder(tmp_path / "a")
    assert previous is not None
    assert (previous / "x").read_text() == "1"
    with writing_folder(tmp_path / "a") as new:
        (new / "x").write_text("2")
    assert content(tmp_path) == {"a/x": "2"}


def test_tensors_are_readable_by_others_as_any_file(tmp_path):
    write_text(tmp_path / "text", "")
    values = torch.arange(6).reshape(2, 3).T
    save_tensors(tmp_path / "a.safetensors", {"x": values}, {"step": "3"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], values)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert checksum(tmp_path / "a.safetensors") == zlib.crc32(
        (tmp_path / "a.safetensors").read_bytes()
    )


def test_safetensors_error_of_a_full_disk_is_an_os_error(tmp_path):
    for context in (writing, writing_folder, writing_files):
        with pytest.raises(FileError, match="out"), context(tmp_path / "out"):
            raise SafetensorError("I/O error: No space left on device")


def test_impossible_targets_are_refused(tmp_path):
    for path, kind in ((tmp_path, ValueError), (tmp_path / "no" / "a", FileNotFoundError)):
        with pytest.raises(kind, match=path.name), writing(path):
            pass
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(OSError, match=r"a\.txt"), writing(tmp_path / "a.txt"):
            pass
        tmp_path.chmod(0o700)


def test_links_stay_links_and_pipes_stay_pipes(tmp_path):
    write_text(tmp_path / "a", "before")
    (tmp_path / "link").symlink_to("a")
    write_text(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text() == "after"
    write_text(os.devnull, "text")
    assert not Path(os.devnull).is_file()


def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_left_alone(tmp_path):
    def killed():
        with writing(tmp_path / "a") as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert ends(killed) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with writing(tmp_path / "a") as first:
        assert not first.read_text()
        with writing(tmp_path / "a") as second:
            second.write_text("second")
        first.write_text("first")
    assert content(tmp_path) == {"a": "first"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_leaves_nothing(tmp_path, number):
    def terminated():
        with run_folder(tmp_path / "run") as run, writing_folder(run / "b"), writing(run / "a"):
            signal.raise_signal(number)

    def command():
        signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, and so do its children.
        return run_command("name", terminated)

    assert ends(command) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_two_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / ".checkpoint.partial").mkdir()
    (tmp_path / ".saving-x").mkdir()
    with run_folder(tmp_path) as folder:
        assert [path.name for path in folder.iterdir()] == ["checkpoint"]
        with pytest.raises(RuntimeError, match=str(tmp_path)), run_folder(tmp_path):
            pass

    def killed():
        with run_folder(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    ends(killed)
    with run_folder(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError), run_folder(tmp_path / "file"):
        pass


def ends(run):
    """The exit code of another process that runs a function."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run()
        except SystemExit as error:
            code = error.code
        finally:
            os._exit(code or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
