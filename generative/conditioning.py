"""Class labels and captions as embeddings, for language models and diffusion models alike.

A condition is a short sequence of vectors: the first embeds the class, the others the tokens of the
caption. Without class and caption, and where training hides them, it is the learned embedding of
"no label" alone. So one network is also the unconditional model that classifier-free guidance needs
(Ho and Salimans, 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokenizer.devices import send
from tokenizer.errors import InputError
from tokenizer.hub import check_name

# Longer captions are truncated to this number of tokens.
MAX_TOKENS = 128


class TextEncoder:
    """A frozen `transformers` text encoder with its tokenizer; of T5 and its like only the encoder.

    This is not a ``torch.nn.Module``: its weights are neither trained nor averaged, and the model
    that it conditions stores its name only.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        self.model = encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = str(model.name_or_path)

    @classmethod
    def from_pretrained(cls, name: str) -> TextEncoder:
        """Loads a folder or hub repository with a model (safetensors) and its tokenizer."""
        from transformers import AutoModel, AutoTokenizer

        config = _text_config(name)
        # AutoModel would load T5's decoder too.
        if config.model_type == "t5":
            from transformers import T5EncoderModel as kind
        else:
            kind = AutoModel
        model = kind.from_pretrained(name, use_safetensors=True)
        return cls(model, AutoTokenizer.from_pretrained(name))

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(
        self, captions: Sequence[str], device: torch.device
    ) -> tuple[Float[Tensor, "B S W"], Bool[Tensor, "B S"]]:
        """Embeds the tokens of each caption; the mask is False for padding."""
        self.model = self.model.to(device)
        tokens = self.tokenizer(
            list(captions),
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=MAX_TOKENS,
        ).to(device)
        mask = tokens["attention_mask"]
        # Not all encoders take token types and other outputs of the tokenizer.
        hidden = self.model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
        return hidden.float(), mask.bool()


def _text_config(name: str) -> Any:
    from transformers import AutoConfig

    check_name(name, short=True)
    return AutoConfig.from_pretrained(name)


class Conditioner(nn.Module):
    """Turns labels and captions into embeddings.

    Args:
        width: Width of the embeddings.
        labels: Names of the classes; batches hold indices into them.
        text_encoder: Name or folder of a `transformers` text encoder, or a `TextEncoder`; None
            for models without captions. A name is loaded when the first caption comes.
        dropout: Share of the training items whose label and caption are hidden together.

    Raises:
        ValueError: If the dropout is not in 0..1 or the width not positive.
    """

    def __init__(
        self,
        width: int,
        labels: Sequence[str] = (),
        text_encoder: str | TextEncoder | None = None,
        dropout: float | int = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise InputError(f"dropout={dropout:g} is not in 0..1.")
        if width < 1:
            raise InputError(f"width={width} must be at least 1.")
        self.width, self.labels, self.dropout = width, tuple(labels), float(dropout)
        # Entry 0 is "no label".
        self.label = nn.Embedding(1 + len(self.labels), width)
        self.text: nn.Linear | None = None
        self.text_norm: nn.LayerNorm | None = None
        self._encoder = text_encoder if isinstance(text_encoder, TextEncoder) else None
        self._name = text_encoder if isinstance(text_encoder, str) else None
        if text_encoder is not None:
            text_width = (
                self._encoder.width
                if self._encoder is not None
                else int(_text_config(str(text_encoder)).hidden_size)
            )
            # Encoders differ in scale by orders of magnitude.
            self.text_norm = nn.LayerNorm(text_width)
            self.text = nn.Linear(text_width, width)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The text encoder, loaded on first use."""
        if self._encoder is None and self._name is not None:
            self._encoder = TextEncoder.from_pretrained(self._name)
        return self._encoder

    def forward(
        self, conditions: Mapping[str, Any], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "B S width"], Bool[Tensor, "B S"]]:
        """Embeds the conditions of a batch.

        ``label`` is int64 ``[B]``, -1 for none; ``caption``, a list of B strings or None, is
        optional. The generator, on the CPU, draws which items are hidden in training; without one
        none are. Returns embeddings, that of the label first, and a mask that is False for padding.
        """
        labels = conditions["label"]
        captions = list(conditions.get("caption") or [None] * len(labels))
        if len(captions) != len(labels):
            raise InputError(f"{len(captions)} captions for {len(labels)} labels.")
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < len(self.labels):
            raise InputError(
                f"A label is not in -1..{len(self.labels) - 1}: {labels.tolist()[:8]}; this model"
                f" has {len(self.labels)} labels."
            )
        labels = send(labels, self.label.weight.device)
        if generator is not None:
            hidden = torch.rand(len(labels), generator=generator) < self.dropout
            labels = labels.masked_fill(send(hidden, labels.device), -1)
            captions = [None if h else c for h, c in zip(hidden.tolist(), captions, strict=True)]
        embeddings = self.label(labels + 1)[:, None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=labels.device)
        if any(caption is not None for caption in captions):
            words, present = self._words(captions)
            embeddings = torch.cat([embeddings, words.to(embeddings.dtype)], dim=1)
            mask = torch.cat([mask, present], dim=1)
        return embeddings, mask

    def with_guidance(
        self, conditions: Mapping[str, Any], guidance_scale: float
    ) -> tuple[Float[Tensor, "R S width"], Bool[Tensor, "R S"]]:
        """Embeds conditions for classifier-free guidance; see `extrapolate`.

        Returns as `forward`; unless the scale is 1, 2B rows, of which the latter B are of no
        condition, or of ``negative_caption``, a list of B strings or None.
        """
        labels = conditions["label"]
        captions = list(conditions.get("caption") or [None] * len(labels))
        if guidance_scale != 1:
            labels = torch.cat([labels, torch.full_like(labels, -1)])
            captions += conditions.get("negative_caption") or [None] * len(captions)
        return self({"label": labels, "caption": captions})

    def _words(self, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Projected tokens of the captions and their mask; padding is zero."""
        encoder = self.text_encoder
        if encoder is None or self.text is None or self.text_norm is None:
            raise InputError("This model takes no captions: it was made without text_encoder=.")
        indices = [i for i, caption in enumerate(captions) if caption is not None]
        texts = [caption for caption in captions if caption is not None]
        hidden, present = encoder(texts, self.label.weight.device)
        words = self.text(self.text_norm(hidden)) * present[..., None]
        out = words.new_zeros(len(captions), *words.shape[1:])
        mask = present.new_zeros(len(captions), present.shape[1])
        rows = send(torch.tensor(indices), words.device)
        return out.index_copy(0, rows, words), mask.index_copy(0, rows, present)


def extrapolate(predictions: Tensor, guidance_scale: float | int) -> Tensor:
    """Classifier-free guidance: ``unconditional + scale (conditional - unconditional)``.

    The predictions are of the conditions of `Conditioner.with_guidance` with the same scale; 1
    returns them as they are.
    """
    if guidance_scale == 1:
        return predictions
    conditional, unconditional = predictions.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
