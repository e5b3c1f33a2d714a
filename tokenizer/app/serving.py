"""Starts the app, by default for this machine only."""

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
# Fonts of the system, so that nothing is fetched.
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
    """Serves a page that encodes and decodes files and, with generators, makes new audio.

    It opens no tunnel, sends no telemetry and fetches nothing, not even fonts.

    Args:
        models: Fitted tokenizers by the names that the page shows.
        generators: Generative models to offer, such as trained runs.
        host: Address to serve on. The default serves this machine only; "0.0.0.0" serves the whole
            network.
        port: TCP port; None for the first free one from 7860 on.
        open_browser: Whether to open the page.

    Returns:
        The page; call its ``wait()``, or ``close()`` at the end.

    Raises:
        ImportError: If Gradio is not installed.
        ValueError: If the port is out of range, there is no model, or a model has no quantizer.
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
