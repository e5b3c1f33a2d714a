"""The configuration of a `LatentTokenizer`, as `transformers` knows configurations."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tokenizer.model.core_config import FIELDS, MODEL_TYPE, TokenizerConfig, own_values


class LatentTokenizerConfig(TokenizerConfig, PreTrainedConfig):
    """A `TokenizerConfig` with what transformers adds to every configuration.

    Args:
        args: As for `TokenizerConfig`.
        kwargs: As for `TokenizerConfig` and ``transformers.PreTrainedConfig``.

    Raises:
        ValueError: If a value has the wrong type, or is a number that no real model has.
    """

    model_type = MODEL_TYPE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in FIELDS if name in kwargs}
        TokenizerConfig.__init__(self, *args, **own)
        PreTrainedConfig.__init__(self, **kwargs)

    @property
    def sampling_rate(self) -> int | None:
        """Hz of audio, as the configurations of codecs have it; None if the class fixes it."""
        return (self.autoencoder or {}).get("sampling_rate")

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], **kwargs: Any
    ) -> Any:  # transformers' own: a configuration, and with return_unused_kwargs the rest
        """Makes a configuration of the content of a ``config.json``; ``kwargs`` as in transformers.

        Only what a tokenizer is made of is taken: see `own_values`.
        """
        commit = {name: config_dict[name] for name in ("_commit_hash",) if name in config_dict}
        return super(TokenizerConfig, cls).from_dict(own_values(config_dict) | commit, **kwargs)


AutoConfig.register(MODEL_TYPE, LatentTokenizerConfig)
