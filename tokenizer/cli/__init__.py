"""``latok``: the command line of the tokenizer, a file for each group of commands."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tokenizer._clash import check_clash
from tokenizer.cli import coding, judging, showing, training


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latok", description="Audio to continuous latents and discrete codes, and back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (coding, judging, showing, training):
        group.register(commands, command)
    return parser


@contextmanager
def _errors_told_once() -> Iterator[None]:
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
    """Runs a command; returns 0, or 2 after printing one line about bad input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _parser(given[0] if given else None).parse_args(given)
        # Here too: when another `tokenizer` overwrote our __init__.py, only this file is left to
        # explain it.
        check_clash()
        with _errors_told_once():
            options.run(options)
        sys.stdout.flush()  # Here a reader that has gone can still be named.
    except BrokenPipeError:
        # As in `latok info FILE | head -1`. At its end Python would try, and fail, once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("latok: broken pipe: nobody reads the output", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"latok: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("latok: interrupted", file=sys.stderr)
        return 130
    return 0
