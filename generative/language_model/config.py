"""`CodecLMConfig`: the ``config.json`` of a `generative.language_model.codec_lm.CodecLM`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from generative.language_model.patterns import CodeVocabulary
from generative.protocol import MAX_CODEBOOKS, MAX_DEPTH, MAX_ENTRIES, MAX_WIDTH
from tokenizer.errors import InputError

if TYPE_CHECKING:  # The Auto classes import this module first: it must not import them.
    from transformers import LlamaConfig

    from tokenizer import LatentTokenizer


class CodecLMConfig(PreTrainedConfig):
    """What a `CodecLM` consists of.

    Args:
        codebook_sizes: Entries of the codebooks to model, the tokenizer's first ones.
        pattern: "delay", "parallel", "flatten", "coarse_first" or "grouped".
        group_frames: Frames of a step of the grouped pattern.
        width: Width of the hidden states; an even multiple of ``heads``.
        depth: Number of layers.
        heads: Attention heads.
        labels: Names of the classes to condition on.
        text_encoder: Name or folder of a `transformers` text encoder for captions; None for none.
        condition_dropout: Share of training items whose conditions are hidden; guidance needs it.
        dropout: Dropout of the attention weights.
        context_frames: Longest sequence of frames in training. Longer clips are generated in
            windows of that length, each of which overlaps the previous one by half. None: no limit.
        fingerprint: The tokenizer's ``codes_fingerprint``.
        hop_length: Samples per frame, which the length of clips that stop early follows from.
        gains: Median root mean square level of the training rows of each class, and under "" of
            all: codes represent audio at level 1.
        kwargs: Further arguments of ``transformers.PreTrainedConfig``.
    """

    model_type = "codec_lm"
    # Names that `transformers` reads, e.g. for caches.
    attribute_map: ClassVar = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
    }

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (1024,),
        pattern: str = "delay",
        group_frames: int = 2,
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
        # Lists and dicts, as JSON has them: a loaded configuration equals the saved one.
        self.codebook_sizes = list(codebook_sizes)
        self.pattern, self.group_frames = pattern, group_frames
        self.width, self.depth, self.heads = width, depth, heads
        self.labels = list(labels)
        self.text_encoder = text_encoder
        self.condition_dropout, self.dropout = condition_dropout, dropout
        self.context_frames = context_frames
        self.fingerprint, self.hop_length = fingerprint, hop_length
        self.gains = dict(gains or {})
        super().__init__(**kwargs)
        ids = self.vocabulary
        self.bos_token_id, self.eos_token_id, self.pad_token_id = ids.start, ids.stop, ids.pad

    @property
    def vocabulary(self) -> CodeVocabulary:
        """The ids of the codes, which all patterns share."""
        return CodeVocabulary(tuple(self.codebook_sizes))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.vocabulary.size

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes a configuration from the content of a ``config.json``.

        Only arguments of this class are taken. Transformers acts on other keys too: one names a
        repository whose code computes attention.
        """
        # `AutoModel` reads the configuration before it looks for the class of the model.
        import_module("generative.language_model.codec_lm")
        allowed = {*inspect.signature(cls.__init__).parameters, "model_type", "_commit_hash"}
        return super().from_dict({k: v for k, v in config_dict.items() if k in allowed}, **kwargs)

    @classmethod
    def for_tokenizer(
        cls, tokenizer: LatentTokenizer, n_codebooks: int | None = None, **options: Any
    ) -> CodecLMConfig:
        """Makes a configuration for the first codebooks of a tokenizer, by default for all."""
        n = tokenizer.resolve_codebooks(n_codebooks, None)
        return cls(
            tokenizer.codebook_sizes[:n],
            fingerprint=tokenizer.codes_fingerprint,
            hop_length=tokenizer.hop_length,
            **options,
        )

    def llama(
        self, vocab_size: int, *, width: int = 0, depth: int = 0, heads: int = 0
    ) -> LlamaConfig:
        """Makes the configuration of the backbone, or of a network of another size."""
        from transformers import LlamaConfig

        width = width or self.width
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            # Gated networks have three matrices: two thirds of the usual four widths.
            intermediate_size=32 * math.ceil(width * 8 / 3 / 32),
            num_hidden_layers=depth or self.depth,
            num_attention_heads=heads or self.heads,
            attention_dropout=self.dropout,
            max_position_embeddings=65_536,
            bos_token_id=vocab_size - 1,
            eos_token_id=self.codebook_sizes[0] if vocab_size > 1 else None,
            pad_token_id=None,
        )


AutoConfig.register(CodecLMConfig.model_type, CodecLMConfig)
