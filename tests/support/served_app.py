"""Serves the app with tiny models until it is interrupted: ``python served_app.py LOG``.

In a process of its own, because Gradio leaves event loops and sockets behind. ``LOG`` gets a line
for every connection that the process makes.
"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path

from models import RATE, make_tokenizer, tone

from tokenizer import AppGenerator, launch_app
from tokenizer.cli.showing import serve

connect = socket.socket.connect


def noted(self, address):
    host = address[0] if isinstance(address, tuple) else "local"
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{host}\n")
    return connect(self, address)


def generate(wish):
    if wish.seconds > 30:
        raise ValueError("30 seconds are <b>enough</b>.")
    return tone(wish.seconds, seed=wish.seed), RATE


if __name__ == "__main__":
    # Jobs in the background of a shell ignore it, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    socket.socket.connect = noted
    app = launch_app(
        {"tiny": make_tokenizer(), "other": make_tokenizer(standardization="channel")},
        [AppGenerator("a run", generate, labels=("birds", "rain"))],
    )
    serve(app)
