# The names that `tokenizer` exports: type checkers read them here, and lazy_loader imports each
# when it is first used.

from .app.generating import AppGenerator as AppGenerator
from .app.serving import launch_app as launch_app
from .audio.inputs import open_audio as open_audio
from .audio.source import AudioSource as AudioSource
from .audio.writing import write_audio as write_audio
from .autoencoders.base import Autoencoder as Autoencoder, Decoder as Decoder, Encoder as Encoder
from .autoencoders.own import register_autoencoder as register_autoencoder
from .codefile import CodeFileError as CodeFileError
from .devices import device_of as device_of
from .export.diffusers_view import DiffusersView as DiffusersView
from .model.config import LatentTokenizerConfig as LatentTokenizerConfig
from .model.latent_tokenizer import CodecOutput as CodecOutput, LatentTokenizer as LatentTokenizer
from .model.loading import load_tokenizer as load_tokenizer
from .model.tensors import EncodeOutput as EncodeOutput
from .quantizers import register_quantizer as register_quantizer
from .quantizers.base import Quantizer as Quantizer
from .quantizers.residual import ResidualVectorQuantizer as ResidualVectorQuantizer
from .quantizers.sources import (
    LatentSource as LatentSource,
    TensorSource as TensorSource,
    sample_frames as sample_frames,
)
from .transcoding.files import decode_file as decode_file, encode_file as encode_file

__version__: str
