"""Every option of every command says what it does, and its default where that is a number."""

import argparse
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from doc_blocks import ROOT

from datasets_scripts import cli as datasets_cli
from generative import cli as generative_cli
from tokenizer import cli as latok_cli


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    subparsers = parser._subparsers
    assert subparsers is not None
    return subparsers._group_actions[0].choices  # pyright: ignore


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name in commands(latok_cli.build_parser(None)):
        yield f"latok {name}", commands(latok_cli.build_parser(name))[name]
    for program, module in (("generative", generative_cli), ("datasets_scripts", datasets_cli)):
        for name, parser in commands(module.build_parser()).items():
            yield f"{program} {name}", parser


def test_latok_says_its_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        latok_cli.build_parser(None).parse_args(["--version"])
    assert capsys.readouterr().out == f"latent-tokenizer {version('latent-tokenizer')}\n"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize(("command", "parser"), list(parsers()))
def test_options_say_what_they_do(command, parser):
    keys = Path(ROOT / "docs/howto/train.md").read_text(encoding="utf-8")
    wrong = []
    for action in parser._actions:
        name = "/".join(action.option_strings) or action.dest
        if action.help is argparse.SUPPRESS:
            # Kept out of --help, which shall fit a screen: a key of --config.
            wrong += [] if f"`{action.dest}`" in keys else [f"{name} is documented nowhere"]
        elif not action.help:
            wrong.append(f"{name} has no help")
        elif is_number(action.default) and "default" not in action.help:
            wrong.append(f"{name} does not name its default")
    assert not wrong, f"{command}: {wrong}"
    assert len(parser.format_help().splitlines()) > 3
