"""The model card: what a trained model is, its training data, how to use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizer.saving import write_text

_USE = """\
from generative import load_run, make_request, generate

model, tokenizer, info = load_run("RUN")
request = make_request(tokenizer, 5.0, labels=[{label}], guidance_scale=2.0{codebooks})
clip = next(generate(model, tokenizer, request, seed=0))
clip.audio  # float32 [C, N] at tokenizer.sampling_rate
"""
_WHAT = {
    "diffusion": "A latent diffusion model (flow matching) on the continuous latents",
    "language model": "A language model on the discrete codes",
}


def write_card(
    folder: Path, info: dict[str, Any], training: dict[str, Any], rows: tuple[int, int]
) -> None:
    """Writes ``README.md`` beside a model.

    ``info`` is the content of ``run.json``, ``rows`` the numbers of training and held-out rows.
    """
    family = info["family"]
    label = json.dumps(info["labels"][0]) if info["labels"] else "None"
    n = info.get("n_codebooks")
    use = _USE.format(label=label, codebooks="" if n is None else f", n_codebooks={n}")
    splits = info["splits"]
    held_out = ", ".join(splits["held_out"]) or "sources of the same"
    log = folder.parent / "log.jsonl"
    last = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    losses = {k: v for line in last for k, v in line.items() if k.startswith("val/")}
    text = f"""---
library_name: latent-tokenizer
license: other
tags: [audio, {"diffusion" if family == "diffusion" else "codec-language-model"}]
---

# {_WHAT[family]} of Latent Tokenizer

- Tokenizer: `{info["tokenizer"] or "the bundled one"}` (identity `{info["identity"]}`)
- Training data: {rows[0]} rows, {rows[1]} held out, of a dataset prepared by
  `python -m datasets_scripts prepare`. The licences in that dataset's card also apply to this
  model: fill in `license:` accordingly.
- Splits: trained on {", ".join(splits["train"])}, held out {held_out}
- Classes: {", ".join(info["labels"]) or "none"}
- Validation figures of the averaged weights: {_list(losses)}
- Training: {_list(training)}

```python
{use}```

On the command line: `python -m generative sample RUN --seconds 5 --out DIR`.

For research. It generates audio like its training data; the content is not checked.
"""
    write_text(folder / "README.md", text)


def _list(values: dict[str, Any]) -> str:
    shown = {k: f"{v:g}" if isinstance(v, float) else v for k, v in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items()) or "none"
