"""Latent Tokenizer: one continuous audio autoencoder, any quantizer fitted afterwards.

    from tokenizer import load_tokenizer

    tokenizer = load_tokenizer()
    row = tokenizer.encode_codes("speech.wav")
    audio = tokenizer.decode_codes(row)

Names are imported when they are first used, so that ``import tokenizer`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenizer._clash import check_clash

if TYPE_CHECKING:
    from tokenizer.app.generating import AppGenerator
    from tokenizer.app.serving import launch_app
    from tokenizer.audio.inputs import open_audio
    from tokenizer.audio.source import AudioSource, write_audio
    from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
    from tokenizer.codefile import CodeFileError
    from tokenizer.devices import device_of
    from tokenizer.export.diffusers_view import DiffusersView
    from tokenizer.model.config import LatentTokenizerConfig
    from tokenizer.model.core import EncodeOutput
    from tokenizer.model.latent_tokenizer import LatentTokenizer
    from tokenizer.model.loading import load_tokenizer
    from tokenizer.quantizers import register_quantizer
    from tokenizer.quantizers.base import Quantizer
    from tokenizer.quantizers.residual import ResidualVectorQuantizer
    from tokenizer.quantizers.sources import LatentSource, TensorSource, sample_frames
    from tokenizer.transcoding.files import decode_file, encode_file

check_clash()

_EXPORTS = {
    "AppGenerator": "tokenizer.app.generating",
    "AudioSource": "tokenizer.audio.source",
    "Autoencoder": "tokenizer.autoencoders.base",
    "CodeFileError": "tokenizer.codefile",
    "Decoder": "tokenizer.autoencoders.base",
    "DiffusersView": "tokenizer.export.diffusers_view",
    "EncodeOutput": "tokenizer.model.core",
    "Encoder": "tokenizer.autoencoders.base",
    "LatentSource": "tokenizer.quantizers.sources",
    "LatentTokenizer": "tokenizer.model.latent_tokenizer",
    "LatentTokenizerConfig": "tokenizer.model.config",
    "Quantizer": "tokenizer.quantizers.base",
    "ResidualVectorQuantizer": "tokenizer.quantizers.residual",
    "TensorSource": "tokenizer.quantizers.sources",
    "decode_file": "tokenizer.transcoding.files",
    "device_of": "tokenizer.devices",
    "encode_file": "tokenizer.transcoding.files",
    "launch_app": "tokenizer.app.serving",
    "load_tokenizer": "tokenizer.model.loading",
    "open_audio": "tokenizer.audio.inputs",
    "register_quantizer": "tokenizer.quantizers",
    "sample_frames": "tokenizer.quantizers.sources",
    "write_audio": "tokenizer.audio.source",
}

__all__ = [
    "AppGenerator",
    "AudioSource",
    "Autoencoder",
    "CodeFileError",
    "Decoder",
    "DiffusersView",
    "EncodeOutput",
    "Encoder",
    "LatentSource",
    "LatentTokenizer",
    "LatentTokenizerConfig",
    "Quantizer",
    "ResidualVectorQuantizer",
    "TensorSource",
    "decode_file",
    "device_of",
    "encode_file",
    "launch_app",
    "load_tokenizer",
    "open_audio",
    "register_quantizer",
    "sample_frames",
    "write_audio",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tokenizer' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
