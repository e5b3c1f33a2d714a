# The names that `tokenizer.training` exports: type checkers read them here, and lazy_loader imports
# each when it is first used.

from .augmentation import NO_AUGMENTATION as NO_AUGMENTATION, Augmentation as Augmentation
from .checkpoint import (
    WeightAverage as WeightAverage,
    load_average as load_average,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from .clips import (
    Clip as Clip,
    identity as identity,
    read_window as read_window,
    scan as scan,
    scan_dataset as scan_dataset,
    split_clips as split_clips,
)
from .config import CropTrainingConfig as CropTrainingConfig, TrainingConfig as TrainingConfig
from .crops import CropDataset as CropDataset
from .loaders import loader_options as loader_options
from .processes import is_main_process as is_main_process, training_device as training_device
from .run_log import RunLog as RunLog
from .trainer import Task as Task, Trainer as Trainer
