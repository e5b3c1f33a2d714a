"""``latok``: the command line of the tokenizer, a file for each group of commands."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tokenizer
from tokenizer._clash import check_clash
from tokenizer.cli import coding, judging, showing, training, wrapping
from tokenizer.cli.options import expand_config
from tokenizer.command import run_command


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of `latok`; some groups add the options of ``command`` alone."""
    parser = argparse.ArgumentParser(
        prog="latok", description="Audio to continuous latents and discrete codes, and back."
    )
    # Another distribution's `tokenizer`, of which check_clash will tell, may have no version.
    version = getattr(tokenizer, "__version__", "unknown")
    parser.add_argument("--version", action="version", version=f"latent-tokenizer {version}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (coding, judging, showing, training, wrapping):
        group.register(commands, command)
    return parser


@contextmanager
def errors_told_once() -> Iterator[None]:
    """TensorBoard writes in a thread, and raises that thread's OSError again where it is called."""
    before = threading.excepthook

    def tell(found: threading.ExceptHookArgs) -> None:
        board = type(found.thread).__module__.startswith("tensorboard.")
        if not (board and isinstance(found.exc_value, OSError)):
            before(found)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; see `run_command` for the exit code."""

    def command() -> None:
        words = expand_config(sys.argv[1:] if arguments is None else arguments)
        options = build_parser(words[0] if words else None).parse_args(words)
        # Here too: when another `tokenizer` overwrote our __init__.py, only this file is left to
        # explain it.
        check_clash()
        with errors_told_once():
            options.run(options)

    return run_command("latok", command)
