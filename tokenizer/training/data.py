"""The names that `clips`, `augmentation` and `crops` had in one module in version 0.1."""

from tokenizer.training.augmentation import NO_AUGMENTATION, Augmentation
from tokenizer.training.clips import (
    AUDIO_SUFFIXES,
    Clip,
    identity,
    read_window,
    scan,
    scan_dataset,
    split_clips,
)
from tokenizer.training.crops import CropDataset

__all__ = [
    "AUDIO_SUFFIXES",
    "NO_AUGMENTATION",
    "Augmentation",
    "Clip",
    "CropDataset",
    "identity",
    "read_window",
    "scan",
    "scan_dataset",
    "split_clips",
]
