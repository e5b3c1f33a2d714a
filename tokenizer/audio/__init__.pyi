from .inputs import (
    is_batch as is_batch,
    is_column as is_column,
    open_audio as open_audio,
    open_batch as open_batch,
    open_signal as open_signal,
)
from .listing import (
    Folders as Folders,
    is_audio as is_audio,
    list_audio as list_audio,
    list_files as list_files,
)
from .resampling import (
    MAX_RATIO as MAX_RATIO,
    Resampler as Resampler,
    check_rate as check_rate,
    resampled_length as resampled_length,
)
from .signals import (
    AUDIO_SUFFIXES as AUDIO_SUFFIXES,
    BLOCK_LENGTH as BLOCK_LENGTH,
    ArraySignal as ArraySignal,
    AudioFile as AudioFile,
    Signal as Signal,
    SignalInfo as SignalInfo,
    as_block as as_block,
)
from .source import (
    MAX_RESAMPLED as MAX_RESAMPLED,
    AudioSource as AudioSource,
    read_beginning as read_beginning,
)
from .writing import AudioWriter as AudioWriter, write_audio as write_audio
