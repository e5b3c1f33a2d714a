"""A `CodecLM` of the flatten pattern as a plain ``LlamaForCausalLM`` with a tokenizer.

    model = AutoModelForCausalLM.from_pretrained("llm")
    tokenizer = AutoTokenizer.from_pretrained("llm")
    prompt = tokenizer("<label_music><start>", return_tensors="pt")
    ranges = LogitsProcessorList([CodeRanges(model.config.codec["codebook_sizes"])])
    ids = model.generate(**prompt, logits_processor=ranges, max_new_tokens=3 * 500)
    codes = tokens_to_codes(ids[0], 3, tokenizer)

The arithmetic is the same: a code of this pattern has one embedding, and the class is an embedding
before the start, so it becomes a token. Captions cannot be exported, as a text encoder embeds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from generative.language_model.code_tokens import code_token
from generative.language_model.codec_lm import CodecLM
from generative.language_model.config import CodecLMConfig
from tokenizer.errors import InputError
from tokenizer.saving import save_pretrained

NO_LABEL, START, STOP, PAD = "<no_label>", "<start>", "<stop>", "<pad>"


def label_token(label: str | None) -> str:
    """The token that a sequence of a class begins with; None is "no class"."""
    return NO_LABEL if label is None else f"<label_{label}>"


def to_llama(model: CodecLM) -> Any:
    """Makes the ``LlamaForCausalLM``.

    Ids are those of the model, followed by "no label" and the labels. ``config.codec`` says what
    the codes are.

    Raises:
        ValueError: If the pattern is not flatten.
    """
    ours = model.config
    if ours.pattern != "flatten":
        raise InputError(
            f"Only models of the flatten pattern are plain language models, this is"
            f" {ours.pattern!r}: train one with --pattern flatten."
        )
    labels = model.conditioner.label.weight.detach()
    config = ours.llama(ours.vocab_size + len(labels))
    ids = ours.vocabulary
    config.bos_token_id, config.eos_token_id, config.pad_token_id = ids.start, ids.stop, ids.pad
    if ours.context_frames is not None:
        # Label, start and stop; engines take this for the longest sequence.
        config.max_position_embeddings = 3 + ours.context_frames * model.num_codebooks
    config.codec = {
        name: getattr(ours, name)
        for name in ("codebook_sizes", "labels", "fingerprint", "hop_length", "gains")
    }
    llama: Any = LlamaForCausalLM(config)
    llama = llama.to(model.dtype).eval()
    state = {name: value.detach() for name, value in model.backbone.state_dict().items()}
    codes, head = (state[f"{name}.weight"] for name in ("model.embed_tokens", "lm_head"))
    state["model.embed_tokens.weight"] = torch.cat([codes, labels.to(codes)])
    # Labels are never predicted.
    state["lm_head.weight"] = torch.cat([head, head.new_zeros(len(labels), head.shape[1])])
    llama.load_state_dict(state)
    llama.generation_config = GenerationConfig.from_model_config(config)
    return llama


def make_tokenizer(config: CodecLMConfig) -> PreTrainedTokenizerFast:
    """Makes the tokenizer: `code_tokens`, and as special tokens start, stop, pad and labels."""
    for name in config.labels:
        if "<" in name or ">" in name:
            raise InputError(f"Label {name!r} cannot be a token: it has '<' or '>'.")
    ids, labels = config.vocabulary, [label_token(name) for name in (None, *config.labels)]
    vocabulary = {
        code_token(k, code): offset + code
        for k, (size, offset) in enumerate(zip(ids.codebook_sizes, ids.offsets, strict=True))
        for code in range(size)
    }
    vocabulary |= {STOP: ids.stop, PAD: ids.pad, START: ids.start}
    vocabulary |= {name: ids.size + index for index, name in enumerate(labels)}
    words = Tokenizer(models.WordLevel(vocabulary))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("<[^<>]*>"), "isolated")
    words.decoder = decoders.Fuse()  # No spaces between tokens.
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=START,
        eos_token=STOP,
        pad_token=PAD,
        additional_special_tokens=labels,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def save_llama(model: CodecLM, folder: str | Path) -> None:
    """Writes model, generation configuration and tokenizer into a folder."""
    llama, tokenizer = to_llama(model), make_tokenizer(model.config)

    def save(new: Path) -> None:
        llama.save_pretrained(new)
        tokenizer.save_pretrained(new)

    save_pretrained(save, folder)
