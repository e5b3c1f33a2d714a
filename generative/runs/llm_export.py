"""A trained language model for the engines that serve language models: `export_llm`."""

from __future__ import annotations

from pathlib import Path

from generative.runs.loading import load_run
from tokenizer.errors import InputError


def export_llm(run: str | Path, out: str | Path, *, tokenizer: str | Path | None = None) -> None:
    """Writes the language model of a run as a plain Llama with a tokenizer of codes.

    Args:
        run: Folder of a finished run, or of an export. Its pattern is flatten.
        out: Folder to write.
        tokenizer: Folder or hub id of the tokenizer of the codes. Default: the run's.

    Raises:
        FileNotFoundError: If the run is not finished.
        ValueError: If the run's model is no language model of the flatten pattern, or ``out`` is
            the run itself.
    """
    from generative.language_model.llama_export import save_llama

    if Path(out).resolve() == Path(run).resolve():
        raise InputError(f"{out} is the run itself: name another folder.")
    model, _, info = load_run(run, tokenizer)
    if info["column"] != "codes":
        raise InputError(f"The run in {run} is a diffusion model: only language models export.")
    save_llama(model, out)
