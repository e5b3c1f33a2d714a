# The names that `generative` exports: type checkers read them here, and lazy_loader imports each
# when it is first used.

from .conditioning import Conditioner as Conditioner, TextEncoder as TextEncoder
from .diffusion.latent_diffusion import (
    LatentDiffusion as LatentDiffusion,
    make_scheduler as make_scheduler,
)
from .diffusion.pipeline import LatentDiffusionPipeline as LatentDiffusionPipeline
from .evaluation.report import write_report as write_report
from .evaluation.trained_run import evaluate_run as evaluate_run
from .language_model.code_processors import CodeDraws as CodeDraws, CodeRanges as CodeRanges
from .language_model.code_tokens import (
    code_tokens as code_tokens,
    codes_to_tokens as codes_to_tokens,
    tokens_to_codes as tokens_to_codes,
)
from .language_model.codec_lm import CodecLM as CodecLM
from .language_model.config import CodecLMConfig as CodecLMConfig
from .language_model.patterns import make_pattern as make_pattern
from .protocol import (
    CodeSampling as CodeSampling,
    DiffusionSampling as DiffusionSampling,
    GenerationRequest as GenerationRequest,
    GenerativeModel as GenerativeModel,
)
from .runs.families import (
    train_diffusion as train_diffusion,
    train_language_model as train_language_model,
)
from .runs.generation import (
    GeneratedClip as GeneratedClip,
    decode as decode,
    generate as generate,
    make_request as make_request,
    save_clips as save_clips,
)
from .runs.llm_export import export_llm as export_llm
from .runs.loading import export_run as export_run, load_model as load_model, load_run as load_run
from .training.training_config import TrainingConfig as TrainingConfig
