from .source import (
    MAX_RATIO as MAX_RATIO,
    MAX_RESAMPLED as MAX_RESAMPLED,
    AudioSource as AudioSource,
    write_audio as write_audio,
)
