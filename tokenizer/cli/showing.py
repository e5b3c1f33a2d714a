"""``latok app``: listen and look in a browser."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tokenizer.cli.options import add_command, add_device, add_option, load
from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.app import RunningApp


def _app(options: argparse.Namespace) -> None:
    from tokenizer.app import launch_app

    models = {name: load(path, options.device) for name, path in named_models(options.model)}
    serve(launch_app(models, host=options.host, port=options.port, open_browser=options.browser))


def serve(app: RunningApp) -> None:
    """Says where the page is, and waits for Ctrl-C."""
    print(f"Open {app.address} in a browser. Ctrl-C ends it.", flush=True)
    app.wait()


def named_models(options: list[str]) -> list[tuple[str, str | None]]:
    """Names and paths of ``--model [NAME=]PATH``; the bundled model if there is none."""
    models: list[tuple[str, str | None]] = []
    for text in options:
        name, equals, path = text.partition("=")
        models.append((name, path) if equals else (text, text))
    if len({name for name, _ in models}) < len(models):
        raise InputError(f"Two models have one name: {', '.join(options)}. Use --model NAME=PATH.")
    return models or [("bundled", None)]


def register(commands: Any, command: str | None) -> None:  # noqa: ARG001
    """Adds the command's parser; none of its options needs torch."""
    p = add_command(
        commands,
        "app",
        _app,
        "listen in a browser",
        description="A page on this machine: drop a file, choose a rate, hear and see it. "
        "With generations: python -m generative app RUN.",
    )
    text = "tokenizer folder, hub id or bundled name; may be repeated; default: base-44khz"
    p.add_argument("--model", action="append", default=[], metavar="[NAME=]PATH", help=text)
    text = "address to serve on, 0.0.0.0 for the whole network"
    add_option(p, "--host", text, "127.0.0.1")
    p.add_argument("--port", type=int, help="TCP port; default: the first free one from 7860 on")
    p.add_argument("--browser", action="store_true", help="also open the page in the browser")
    add_device(p)
