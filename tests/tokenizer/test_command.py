"""How a command ends: exit codes, and what the user sees of an error."""

import os
import subprocess
import sys

import pytest
from models import RATE, make_tokenizer, tone

from tokenizer.audio import write_audio
from tokenizer.command import run_command
from tokenizer.errors import InputError, MissingFileError


def failing(error: BaseException):
    def command():
        raise error

    return command


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (3, 3)])
def test_the_code_of_a_command_is_kept(code, expected, capsys):
    assert run_command("latok", lambda: code) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            InputError("--bitrate 0\n  is below\n\none codebook"),
            "--bitrate 0 is below one codebook",
        ),
        (MissingFileError("No such file: a.wav"), "No such file: a.wav"),
        (PermissionError(13, "Permission denied", "b.ltk"), "b.ltk"),
        (OSError(), "OSError"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(error, words, monkeypatch, capsys):
    monkeypatch.delenv("LATOK_DEBUG", raising=False)
    assert run_command("latok", failing(error)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("latok: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("7"), AssertionError(), KeyError("k"), MemoryError()])
def test_a_bug_keeps_its_traceback(error, monkeypatch, capsys):
    monkeypatch.delenv("LATOK_DEBUG", raising=False)
    with pytest.raises(type(error)) as raised:
        run_command("latok", failing(error))
    assert raised.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [InputError("3"), OSError("disk")])
@pytest.mark.parametrize(
    ("value", "is_raised"), [("1", True), ("yes", True), ("0", False), ("", False)]
)
def test_with_latok_debug_every_error_keeps_its_traceback(error, value, is_raised, monkeypatch):
    monkeypatch.setenv("LATOK_DEBUG", value)
    if is_raised:
        with pytest.raises(type(error)) as raised:
            run_command("latok", failing(error))
        assert raised.value is error
    else:
        assert run_command("latok", failing(error)) == 2


def test_an_interrupted_command_ends_as_shells_expect(capsys):
    assert run_command("latok", failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "latok: interrupted\n"


@pytest.mark.slow
def test_names_that_the_terminal_cannot_write_are_no_failure(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # Latin-1
    folder.mkdir()
    write_audio(folder / "für.wav", tone(0.2), RATE)
    make_tokenizer().save_pretrained(tmp_path / "model")
    words = ["encode", str(folder), "--model", str(tmp_path / "model")]
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-m", "tokenizer", *words],
            env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        (folder / "für.ltk").unlink()


@pytest.mark.slow
def test_in_a_shell(tmp_path):
    def info(debug: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tokenizer", "info", str(tmp_path / "absent.ltk")],
            env=os.environ | {"LATOK_DEBUG": debug}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    line, traceback = info(""), info("1")
    assert line.returncode == 2
    assert line.stderr.count("\n") == 1
    assert "absent.ltk" in line.stderr
    assert traceback.returncode == 1
    assert traceback.stderr.startswith("Traceback")
