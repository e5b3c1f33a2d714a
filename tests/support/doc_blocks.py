"""Code blocks of Markdown pages, and the commands in them."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "examples/README.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)
# What is not ours: only looked at, so that a block with a word that is not here is noticed.
FOREIGN = {
    *("git", "cd", "cat", ".", "ray", "tensorboard", "mkdocs", "pytest"),
    *("ffmpeg", "ffplay", "arecord"),
}
OURS = {"latok", "python", "python3", "accelerate", "torchrun", "pip", "sh"}


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: Path of the page in the repository.
        line: Where the code begins, from 1.
        kind: "python", "bash", "text" and so on.
        code: Its lines.
        comment: What the HTML comment right above it says.
    """

    page: str
    line: int
    kind: str
    code: str
    comment: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The code blocks of a page, fenced or indented, in lists too."""
    found, comment, end = [], "", -1
    for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8")):
        if token.map is None:
            continue
        if token.type == "html_block":
            said = re.fullmatch(r"<!-- (.*?) -->\s*", token.content, flags=re.S)
            comment, end = (said[1], token.map[1]) if said else ("", -1)
        elif token.type in ("fence", "code_block"):
            first = token.map[0] + 1 + (token.type == "fence")
            above = comment if token.map[0] <= end + 1 else ""
            kind = token.info.split()[0] if token.info.strip() else _guess(token.content)
            found.append(Block(page, first, kind, token.content, above))
    return found


def _guess(code: str) -> str:
    return "bash" if _is_command(code.lstrip("\n").splitlines()[0]) else "text"


def _is_command(line: str) -> bool:
    return bool(re.match(rf"(\w+=\S+ )*({'|'.join(map(re.escape, FOREIGN | OURS))})\s", line))


def hidden_commands(block: Block) -> list[str]:
    """Lines of a block of text that are commands all the same."""
    return [line for line in block.code.splitlines() if _is_command(line) and " " in line]


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block, each as its words; pipes and redirections are taken apart."""
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, "|"]:
            if skip:
                skip = False
            elif word in ("|", "&&", ";", "||"):
                if words:
                    yield words
                words = []
            elif word in ("<", ">", ">>"):
                skip = True
            elif words or not re.match(r"\w+=", word):
                words.append(word)


class Parsed(Exception):
    """A parser took all that it was given; `options` is what it made of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


def program(words: list[str]) -> tuple[str, list[str]]:
    """What a command runs: "latok", a module or a script of ours, or "" ; and its arguments."""
    if words[0] == "latok":
        return "tokenizer", words[1:]
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        words = ["python", *_launched(launch_command_parser(), words[2:])]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        words = ["python", *_launched(get_args_parser(), words[1:])]
    if words[0] in ("python", "python3"):
        if words[1] == "-m" and words[2].split(".")[0] in {
            "tokenizer",
            "generative",
            "datasets_scripts",
        }:
            return words[2], words[3:]
        if words[1].startswith(("examples/", "tests/")):
            return words[1], words[2:]
    return "", words


def _launched(launcher: argparse.ArgumentParser, words: list[str]) -> list[str]:
    options = launcher.parse_args(words)
    script = ["-m"] * options.module + [options.training_script]
    return script + options.training_script_args


def parse(words: list[str], monkeypatch: Any) -> argparse.Namespace | None:
    """Hands a command to the parser of its program, which runs no further.

    Returns:
        What the parser found; None for commands that are not ours or have no parser.

    Raises:
        SystemExit: If the parser refuses it.
        ValueError: If nobody knows the command.
    """
    name, arguments = program(words)
    if not name:
        _check_foreign(words)
        return None
    if not _has_parser(name):
        # It would run; other tests run it.
        if any(word.startswith("-") for word in arguments) and not name.startswith("tests/"):
            raise ValueError(f"{name} takes no options.")
        return None
    original = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        raise Parsed(original(parser, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [name, *arguments])
        patch.syspath_prepend(str(ROOT / "examples"))
        try:
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                with warnings.catch_warnings():
                    # Other tests have imported it; here it is run afresh.
                    warnings.filterwarnings("ignore", ".*found in sys.modules after import")
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
        except Parsed as parsed:
            return parsed.options
    raise ValueError(f"{name} has not parsed its arguments.")


def _has_parser(name: str) -> bool:
    if name.endswith(".py"):
        return "ArgumentParser(" in (ROOT / name).read_text(encoding="utf-8")
    path = ROOT.joinpath(*name.split("."))
    if not path.is_dir():
        text = path.with_suffix(".py").read_text(encoding="utf-8")
        return "ArgumentParser(" in text or "benchmark_parser(" in text
    return (path / "__main__.py").exists()


def _check_foreign(words: list[str]) -> None:
    if words[0] == "pip" or words[1:3] == ["-m", "pip"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for group in re.findall(r"(?:latent-tokenizer|\.)\[(.*?)\]", " ".join(words)):
            unknown = set(group.split(",")) - set(extras["optional-dependencies"])
            if unknown:
                raise ValueError(f"There is no extra {sorted(unknown)}.")
    elif words[0] == "sh":
        if not (ROOT / words[1]).exists():
            raise ValueError(f"There is no {words[1]}.")
    elif words[0] not in FOREIGN and words[:3] not in (
        ["python", "-m", "venv"],
        ["python3", "-m", "venv"],
    ):
        raise ValueError(f"Nobody knows the command {words[0]!r}.")


def inline_flags(page: str) -> list[tuple[str, str]]:
    """Options in the text of a page, after the command that they belong to ("latok fit", or "")."""
    found = []
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8")):
        for child in token.children or ():
            words = child.content.split() if child.type == "code_inline" else []
            command = ""
            if words[:1] == ["latok"] and len(words) > 1 and words[1].islower():
                command = f"latok {words[1]}"
            elif words[:2] == ["python", "-m"] and words[2] in ("generative", "datasets_scripts"):
                command = f"{words[2]} {words[3]}"
            if command or (words and words[0].startswith("--")):
                flags = [word for word in words if re.match(r"--[a-z]", word)]
                found += [(command, re.match(r"[-\w]+", flag)[0]) for flag in flags]
    return found


def known_flags() -> dict[str, set[str]]:
    """The options of every command; under "" those of all programs of ours."""
    from datasets_scripts import cli as datasets_cli
    from generative import cli as generative_cli
    from tokenizer import cli as latok_cli

    def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
        subparsers = parser._subparsers
        assert subparsers is not None
        return subparsers._group_actions[0].choices  # pyright: ignore

    found: dict[str, set[str]] = {}
    for name in commands(latok_cli.build_parser(None)):
        parser = commands(latok_cli.build_parser(name))[name]
        found[f"latok {name}"] = set(parser._option_string_actions)
    for program, module in (("generative", generative_cli), ("datasets_scripts", datasets_cli)):
        for name, parser in commands(module.build_parser()).items():
            found[f"{program} {name}"] = set(parser._option_string_actions)
    found[""] = set().union(*found.values())
    for path in (*(ROOT / "examples").glob("*.py"), *ROOT.glob("*/benchmarks/*.py")):
        found[""] |= set(re.findall(r'"(--[-\w]+)"', path.read_text(encoding="utf-8")))
    return found
