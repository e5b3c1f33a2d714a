"""`CodecLMConfig`: the ``config.json`` of a `generative.language_model.codec_lm.CodecLM`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from generative.protocol import MAX_CODEBOOKS, MAX_DEPTH, MAX_ENTRIES, MAX_WIDTH
from tokenizer import LatentTokenizer
from tokenizer.errors import InputError


class CodecLMConfig(PreTrainedConfig):
    """What a `CodecLM` consists of.

    Args:
        codebook_sizes: Entries of the codebooks that are learned: the tokenizer's first ones.
        pattern: "delay", "parallel", "flatten" or "coarse_first".
        width: Of the hidden states.
        depth: Number of layers.
        heads: Attention heads; divides the width into even parts.
        labels: Names of the classes that can be asked for.
        text_encoder: Name or folder of a `transformers` text encoder for captions; None for none.
        condition_dropout: Share of training items whose conditions are hidden, which is what
            guidance needs.
        dropout: Of the attention's weights, in training.
        context_frames: Longest run of frames the model was trained on; longer clips are generated
            in windows of that length, each of which sees half of the one before. None: no limit.
        fingerprint: The tokenizer's ``codes_fingerprint``.
        hop_length: Samples per frame, which says how long a clip is that stops early.
        gains: Median root mean square level of the training rows of each class, and under "" of
            all: codes are of audio at level 1.
        kwargs: What transformers adds to every configuration.
    """

    model_type = "codec_lm"

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (1024,),
        pattern: str = "delay",
        width: int = 384,
        depth: int = 6,
        heads: int = 6,
        labels: Sequence[str] = (),
        text_encoder: str | None = None,
        condition_dropout: float | int = 0.1,
        dropout: float | int = 0.0,
        context_frames: int | None = None,
        fingerprint: str | None = None,
        hop_length: int | None = None,
        gains: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if depth > MAX_DEPTH or width > MAX_WIDTH or len(codebook_sizes) > MAX_CODEBOOKS:
            raise InputError(
                f"width={width}, depth={depth}, {len(codebook_sizes)} codebooks: at most "
                f"{MAX_WIDTH}, {MAX_DEPTH} and {MAX_CODEBOOKS} are allowed."
            )
        if not all(1 <= size <= MAX_ENTRIES for size in codebook_sizes):
            raise InputError(f"Codebooks have 1 to {MAX_ENTRIES} entries, not {codebook_sizes}.")
        if min(width, depth, heads) < 1 or width % (2 * heads):
            raise InputError(
                f"width={width}, depth={depth}, heads={heads}: each must be at least 1, and the"
                " width an even multiple of the heads."
            )
        if context_frames is not None and context_frames < 2:
            raise InputError(f"context_frames must be at least 2, got {context_frames}.")
        # JSON has lists only; a configuration is the same before and after it was stored.
        self.codebook_sizes = list(codebook_sizes)
        self.pattern = pattern
        self.width, self.depth, self.heads = width, depth, heads
        self.labels = list(labels)
        self.text_encoder = text_encoder
        self.condition_dropout, self.dropout = condition_dropout, dropout
        self.context_frames = context_frames
        self.fingerprint, self.hop_length = fingerprint, hop_length
        self.gains = dict(gains or {})
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes a configuration of the content of a ``config.json``.

        Only this class' own arguments are taken: transformers acts on other keys, one of which
        names a repository whose code is to compute attention. ``kwargs`` are as in transformers.
        """
        taken = {*inspect.signature(cls.__init__).parameters, "model_type", "_commit_hash"}
        return super().from_dict({k: v for k, v in config_dict.items() if k in taken}, **kwargs)

    @classmethod
    def for_tokenizer(
        cls, tokenizer: LatentTokenizer, n_codebooks: int | None = None, **options: Any
    ) -> CodecLMConfig:
        """A configuration for the codes of a tokenizer.

        Args:
            tokenizer: Its codes are to be learned.
            n_codebooks: How many codebooks. Default: all.
            options: As for the class.
        """
        n = tokenizer.resolve_codebooks(n_codebooks, None)
        return cls(
            tokenizer.codebook_sizes[:n],
            fingerprint=tokenizer.codes_fingerprint,
            hop_length=tokenizer.hop_length,
            **options,
        )

    def llama(self, vocab_size: int) -> LlamaConfig:
        """The configuration of the backbone."""
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.width,
            # A gated network has three matrices, so two thirds of the usual four widths.
            intermediate_size=32 * math.ceil(self.width * 8 / 3 / 32),
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            attention_dropout=self.dropout,
            max_position_embeddings=65_536,
            bos_token_id=vocab_size - 1,
            eos_token_id=self.codebook_sizes[0],
            pad_token_id=None,
        )
