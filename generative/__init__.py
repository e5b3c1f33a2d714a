"""Models that generate: codec language models over codes, latent diffusion over latents.

    from generative import generate, load_run, make_request

    model, tokenizer, info = load_run("runs/diffusion")
    request = make_request(tokenizer, 5.0, labels=["music"])
    clip = next(generate(model, tokenizer, request, seed=0))

Names are imported when they are first used, so that ``import generative`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import tokenizer

if TYPE_CHECKING:
    from generative.conditioning import Conditioner, TextEncoder
    from generative.diffusion.latent_diffusion import LatentDiffusion, make_scheduler
    from generative.evaluation.judging import evaluate_run
    from generative.evaluation.report import write_report
    from generative.language_model.codec_lm import CodecLM
    from generative.language_model.lm_config import CodecLMConfig
    from generative.language_model.patterns import make_pattern
    from generative.protocol import (
        CodeSampling,
        DiffusionSampling,
        GenerationRequest,
        GenerativeModel,
    )
    from generative.runs.diffusion_pipeline import LatentDiffusionPipeline
    from generative.runs.exporting import export_run
    from generative.runs.runs import train_diffusion, train_language_model
    from generative.runs.sampling import (
        GeneratedClip,
        decode,
        generate,
        load_model,
        load_run,
        make_request,
        save_clips,
    )
    from generative.training.training_config import TrainingConfig

# PyPI's `tokenizer` may hide ours: then nothing of ours has run yet, and this is the first place
# that can tell.
if "LatentTokenizer" not in getattr(tokenizer, "__all__", ()):
    raise ImportError(
        f"The package 'tokenizer' at {tokenizer.__file__} is not latent-tokenizer's, which"
        f" {__name__!r} needs. Use a fresh environment (python -m venv), or run `pip uninstall"
        " tokenizer latent-tokenizer` and install latent-tokenizer again."
    )

_EXPORTS = {
    "CodeSampling": "generative.protocol",
    "CodecLM": "generative.language_model.codec_lm",
    "CodecLMConfig": "generative.language_model.lm_config",
    "Conditioner": "generative.conditioning",
    "DiffusionSampling": "generative.protocol",
    "GeneratedClip": "generative.runs.sampling",
    "GenerationRequest": "generative.protocol",
    "GenerativeModel": "generative.protocol",
    "LatentDiffusion": "generative.diffusion.latent_diffusion",
    "LatentDiffusionPipeline": "generative.runs.diffusion_pipeline",
    "TextEncoder": "generative.conditioning",
    "TrainingConfig": "generative.training.training_config",
    "decode": "generative.runs.sampling",
    "evaluate_run": "generative.evaluation.judging",
    "export_run": "generative.runs.exporting",
    "generate": "generative.runs.sampling",
    "load_model": "generative.runs.sampling",
    "load_run": "generative.runs.sampling",
    "make_pattern": "generative.language_model.patterns",
    "make_request": "generative.runs.sampling",
    "make_scheduler": "generative.diffusion.latent_diffusion",
    "save_clips": "generative.runs.sampling",
    "train_diffusion": "generative.runs.runs",
    "train_language_model": "generative.runs.runs",
    "write_report": "generative.evaluation.report",
}

__all__ = [
    "CodeSampling",
    "CodecLM",
    "CodecLMConfig",
    "Conditioner",
    "DiffusionSampling",
    "GeneratedClip",
    "GenerationRequest",
    "GenerativeModel",
    "LatentDiffusion",
    "LatentDiffusionPipeline",
    "TextEncoder",
    "TrainingConfig",
    "decode",
    "evaluate_run",
    "export_run",
    "generate",
    "load_model",
    "load_run",
    "make_pattern",
    "make_request",
    "make_scheduler",
    "save_clips",
    "train_diffusion",
    "train_language_model",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'generative' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
