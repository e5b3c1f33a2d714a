"""`latok app`: a page in the browser that codes a file, to listen to and to look at."""

from __future__ import annotations

from tokenizer.app.generating import AppGenerator
from tokenizer.app.serving import RunningApp, launch_app

__all__ = ["AppGenerator", "RunningApp", "launch_app"]
