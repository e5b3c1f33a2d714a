"""Starts the app: on this machine only, unless it is told otherwise."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizer.app.generating import AppGenerator
from tokenizer.app.page import Page, build_page, import_gradio
from tokenizer.errors import FileError, InputError
from tokenizer.evaluation.demo import EXAMPLE
from tokenizer.model.latent_tokenizer import LatentTokenizer

HOST = "127.0.0.1"
MAX_UPLOAD = "500mb"
LAST_PORT = 65_535
# Of the system: nothing is fetched.
_FONTS, _MONOSPACED = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


class RunningApp:
    """A page that is being served.

    Attributes:
        address: Where to open it.
    """

    def __init__(self, address: str, blocks: Any, files: tempfile.TemporaryDirectory[str]) -> None:
        self.address = address
        self._blocks, self._files = blocks, files

    def wait(self) -> None:
        """Returns when it is interrupted (Ctrl-C), and closes it."""
        try:
            self._blocks.block_thread()
        finally:
            self.close()

    def close(self) -> None:
        """Stops serving and removes the files of the page."""
        self._blocks.close(verbose=False)
        self._files.cleanup()


def launch_app(
    models: Mapping[str, LatentTokenizer],
    generators: Sequence[AppGenerator] = (),
    *,
    host: str = HOST,
    port: int | None = None,
    open_browser: bool = False,
) -> RunningApp:
    """Serves a page that codes files, to listen to and to look at, and generates if it can.

    Nothing is shared, counted or fetched: no tunnel, no telemetry, no fonts of others.

    Args:
        models: Fitted tokenizers by the names that the page shows.
        generators: What else makes sounds, such as trained runs.
        host: Whom to serve. The default is this machine alone; "0.0.0.0" is everyone who can reach
            it.
        port: TCP port; None for the first free one from 7860 on.
        open_browser: Whether to open the page.

    Returns:
        The page; call its ``wait()``, or ``close()`` in the end.

    Raises:
        ImportError: If Gradio is not installed.
        ValueError: If there is no such port, no model, or one without a quantizer.
        OSError: If the port is taken.
    """
    if port is not None and not 1 <= port <= LAST_PORT:
        raise InputError(f"Port {port} is no port: choose one from 1 to {LAST_PORT}.")
    gr = import_gradio()
    files = tempfile.TemporaryDirectory(prefix="latok-app-")
    try:
        blocks = build_page(Page(models, generators, Path(files.name)))
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            theme=gr.themes.Default(font=_FONTS, font_mono=_MONOSPACED),
            footer_links=[],
            run_history=False,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(EXAMPLE)],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
        )
    except BaseException as error:
        files.cleanup()
        if isinstance(error, OSError) and port is not None:
            raise FileError(f"Port {port} of {host} is not free: choose another one.") from error
        raise
    return RunningApp(address, blocks, files)
