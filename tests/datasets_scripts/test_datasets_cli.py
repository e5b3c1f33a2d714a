"""The command line of `datasets_scripts`."""

import argparse
import shutil

import pytest
from preparing import assert_same_rows, rows_of, write

from datasets_scripts import cli
from datasets_scripts.cli import main
from tokenizer.saving import run_folder


def options_of(parser):
    """All options of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)
        else:
            yield action


def test_every_option_has_help_and_says_its_default():
    for action in options_of(cli.build_parser()):
        assert action.help, action.dest
        required = action.required or not action.option_strings
        if not required and action.dest not in ("help", "version"):
            assert "default: " in action.help, action.dest


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--segment-seconds", "inf"), "segment_seconds=inf"),
        (("--segment-seconds", "nan"), "segment_seconds=nan"),
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


def test_a_second_run_in_a_folder_is_refused(corpus, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tok")
    command = ["prepare", "audiofolder", str(corpus), "--out", str(tmp_path / "o")]
    command += ["--tokenizer", str(tmp_path / "tok")]
    with run_folder(tmp_path / "o"):
        assert main(command) == 2
    assert str(tmp_path / "o") in capsys.readouterr().err.splitlines()[-1]
    assert main(command) == 0


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
