"""The name that `tokenizer.training.config.CropTrainingConfig` had in version 0.1."""

from tokenizer.training.config import CropTrainingConfig as LoopConfig

__all__ = ["LoopConfig"]
