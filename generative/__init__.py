"""Models that generate: codec language models over codes, latent diffusion over latents.

    from generative import generate, load_run, make_request

    model, tokenizer, info = load_run("runs/diffusion")
    request = make_request(tokenizer, 5.0, labels=["music"])
    clip = next(generate(model, tokenizer, request, seed=0))

Names are imported when they are first used, so that ``import generative`` is quick.
"""

from __future__ import annotations

import lazy_loader

import tokenizer

# PyPI's `tokenizer` may hide ours: then nothing of ours has run yet, and this is the first place
# that can tell.
if "LatentTokenizer" not in getattr(tokenizer, "__all__", ()):
    raise ImportError(
        f"The package 'tokenizer' at {tokenizer.__file__} is not latent-tokenizer's, which"
        f" {__name__!r} needs. Use a fresh environment (python -m venv), or run `pip uninstall"
        " tokenizer latent-tokenizer` and install latent-tokenizer again."
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Here, as the tokenizer has been checked now.
from tokenizer._registering import register_when_imported  # noqa: E402

register_when_imported(
    {
        "transformers.models.auto.configuration_auto": "generative.language_model.config",
        "diffusers.pipelines.pipeline_utils": "generative.diffusion.pipeline",
    }
)
