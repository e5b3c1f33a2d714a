# The names that `datasets_scripts` exports: type checkers read them here, and lazy_loader imports
# each when it is first used.

from .dataset.batches import (
    CodesCollator as CodesCollator,
    LatentsCollator as LatentsCollator,
    LengthBucketSampler as LengthBucketSampler,
    frame_lengths as frame_lengths,
)
from .dataset.hub import push_dataset as push_dataset, save_to_disk as save_to_disk
from .dataset.manifest import Manifest as Manifest, read_manifest as read_manifest
from .dataset.opening import open_prepared as open_prepared
from .dataset.storage import Folder as Folder
from .dataset.verify import verify_dataset as verify_dataset
from .preparation.options import (
    Request as Request,
    Resources as Resources,
    RowOptions as RowOptions,
)
from .preparation.prepare import prepare_dataset as prepare_dataset
from .preparation.ray_prepare import prepare_with_ray as prepare_with_ray
from .sources.corpus import SPLIT_WORDS as SPLIT_WORDS
