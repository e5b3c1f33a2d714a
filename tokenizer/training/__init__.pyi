# The names that `tokenizer.training` exports: type checkers read them here, and lazy_loader imports
# each when it is first used.

from .checkpoint import (
    WeightAverage as WeightAverage,
    load_average as load_average,
    load_checkpoint as load_checkpoint,
    save_checkpoint as save_checkpoint,
)
from .config import (
    CropTrainingConfig as CropTrainingConfig,
    TrainingConfig as TrainingConfig,
)
from .processes import is_main_process as is_main_process
from .run_log import RunLog as RunLog
from .trainer import Task as Task, Trainer as Trainer
