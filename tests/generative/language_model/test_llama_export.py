"""Codes as tokens, and language models of codes as plain Llamas: another engine, equal codes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from models import REFUSED
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)

from generative import (
    CodecLM,
    CodecLMConfig,
    CodeDraws,
    CodeRanges,
    CodeSampling,
    code_tokens,
    codes_to_tokens,
    tokens_to_codes,
)
from generative.language_model.llama_export import label_token, save_llama

SIZES = (16, 16, 12)
LABELS = ("speech", "brass band")
CLASSES = torch.tensor([0, 1, -1])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"width": 32, "depth": 2, "heads": 2, "labels": LABELS, "context_frames": 40}
    model = CodecLM(CodecLMConfig(SIZES, "flatten", **options)).eval()
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(25)
        model.conditioner.label.weight.mul_(50)
    return model


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    save_llama(model, folder)
    return folder


@pytest.fixture(scope="module")
def llama(exported):
    return AutoModelForCausalLM.from_pretrained(exported)


@pytest.fixture(scope="module")
def words(exported):
    return AutoTokenizer.from_pretrained(exported)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts(words):
    texts = [label_token(name) + "<start>" for name in (*LABELS, None)]
    return words(texts, return_tensors="pt")


def generate(llama, words, processor, **options):
    """Codes of each class, by `transformers` alone but for the processor."""
    ids = llama.generate(
        **prompts(words), logits_processor=LogitsProcessorList([processor]), **options
    )
    return [tokens_to_codes(row, len(SIZES), words) for row in ids]


def sample(model, frames, seed=0, **options):
    found = model.sample({"label": CLASSES}, frames, seeded(seed), **options)
    return [codes.numpy() for codes in found]


def test_it_is_a_plain_llama(llama, words, exported):
    assert type(llama) is LlamaForCausalLM
    assert json.loads((exported / "config.json").read_text())["model_type"] == "llama"
    assert words.is_fast
    # Every id has a token; the end of audio ends a sequence.
    assert len(words) == llama.config.vocab_size
    assert words.convert_ids_to_tokens(llama.generation_config.eos_token_id) == "<stop>"
    assert words.convert_ids_to_tokens(llama.generation_config.bos_token_id) == "<start>"
    assert llama.config.max_position_embeddings == 3 + 40 * len(SIZES)


def test_the_likeliest_codes_are_the_same(model, llama, words):
    wanted = sample(model, 12, sampling=CodeSampling(temperature=0))
    ranges = CodeRanges(llama.config.codec["codebook_sizes"], stop=False)
    found = generate(llama, words, ranges, max_new_tokens=12 * len(SIZES), do_sample=False)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_seeds_give_equal_codes(model, llama, words, stop, seed):
    sampling = CodeSampling(temperature=1.1, top_k=9, top_p=0.9, stop=stop)
    wanted = sample(model, 12, seed, sampling=sampling)
    draws = CodeDraws(SIZES, 12, len(CLASSES), seeded(seed), sampling)
    found = generate(llama, words, draws, max_new_tokens=12 * len(SIZES), do_sample=False)
    assert [len(codes) for codes in found] == [len(codes) for codes in wanted]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert any(len(codes) < 12 for codes in found) == stop


def test_guidance_takes_the_other_prompt(model, llama, words):
    wanted = sample(model, 8, sampling=CodeSampling(temperature=0), guidance_scale=2.5)
    nothing = words(["<no_label><start>"] * 3, return_tensors="pt").input_ids
    options = {"guidance_scale": 2.5, "negative_prompt_ids": nothing, "do_sample": False}
    ranges = CodeRanges(SIZES, stop=False)
    found = generate(llama, words, ranges, max_new_tokens=8 * len(SIZES), **options)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_prompts_are_continued(model, llama, words):
    start = torch.randint(0, 12, (4, 3), generator=seeded())
    greedy = CodeSampling(temperature=0)
    wanted = model.sample({"label": CLASSES[:1]}, 9, seeded(), sampling=greedy, prompts=[start])
    text = label_token(LABELS[0]) + "<start>" + codes_to_tokens(start.numpy())
    processors = LogitsProcessorList([CodeRanges(SIZES, stop=False)])
    options = {"max_new_tokens": 5 * len(SIZES), "do_sample": False}
    ids = llama.generate(**words(text, return_tensors="pt"), logits_processor=processors, **options)
    assert np.array_equal(tokens_to_codes(ids[0], 3, words), wanted[0].numpy())


def test_draws_of_other_sequences_are_refused(llama, words):
    with pytest.raises(REFUSED, match="2"):
        generate(llama, words, CodeDraws(SIZES, 2, 2, seeded()), max_new_tokens=6)
    with pytest.raises(REFUSED, match="at most 6"):
        generate(llama, words, CodeDraws(SIZES, 2, 3, seeded()), max_new_tokens=9)


def test_other_patterns_and_impossible_labels_are_refused(tmp_path):
    small = {"width": 16, "depth": 1, "heads": 2}
    with pytest.raises(REFUSED, match="'delay'"):
        save_llama(CodecLM(CodecLMConfig(SIZES, "delay", **small)), tmp_path)
    with pytest.raises(REFUSED, match="a<b"):
        save_llama(CodecLM(CodecLMConfig(SIZES, "flatten", labels=["a<b"], **small)), tmp_path)
    assert not list(tmp_path.iterdir())


# Codes as tokens


def foreign_tokenizer(codebook_sizes):
    """Somebody's tokenizer of text, to which codes were added."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    tokenizer.add_tokens(code_tokens(codebook_sizes))
    return tokenizer


FOREIGN = foreign_tokenizer(SIZES)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9), st.integers(0, 99))
def test_codes_and_tokens_are_inverse(frames, seed):
    codes = np.random.default_rng(seed).integers(0, SIZES, (frames, len(SIZES)))
    text = codes_to_tokens(codes.astype(np.int16))
    assert np.array_equal(tokens_to_codes(text, 3), codes)
    ids = codes_to_tokens(codes, FOREIGN)
    assert np.array_equal(tokens_to_codes(ids, 3, FOREIGN), codes)
    assert FOREIGN(text).input_ids == ids


def test_texts_of_the_exported_tokenizer_are_codes(words):
    codes = np.array([[3, 15, 11], [0, 1, 2]])
    text = codes_to_tokens(codes)
    assert text == "<a_0_3><a_1_15><a_2_11><a_0_0><a_1_1><a_2_2>"
    assert codes_to_tokens(codes, words) == words(text).input_ids
    ids = words("<label_speech><start>" + text + "<stop><pad>").input_ids
    assert words.decode(ids, skip_special_tokens=True) == text
    assert np.array_equal(tokens_to_codes(ids, 3, words), codes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<a_0_3><a_2_1>", r"Token 1 .*<a_2_1>.* codebook 1"),
        ("<a_1_3>", r"Token 0 .*<a_1_3>.* codebook 0"),
        ("<a_0_3><a_1_1><a_0_2>", r"incomplete: 1 of 2"),
        ("<a_0_3> and <a_1_1>", r"Token 1 .*and"),
        ("<a_0_3><a_1_1>.", r"Token 2 "),
        ("<a_0_x><a_1_1>", r"Token 0 .*a_0_x"),
    ],
)
def test_broken_sequences_are_refused(text, said):
    with pytest.raises(REFUSED, match=said):
        tokens_to_codes(text, 2)


def test_what_is_no_code_is_refused():
    with pytest.raises(REFUSED, match=r"\[2\]"):
        codes_to_tokens(np.array([1, 2]))
    with pytest.raises(REFUSED, match="float"):
        codes_to_tokens(np.zeros((2, 2)))
    with pytest.raises(REFUSED, match="-1"):
        codes_to_tokens(np.array([[0, -1]]))
    with pytest.raises(REFUSED, match="<a_2_12>"):
        codes_to_tokens(np.array([[0, 0, 12]]), FOREIGN)
    with pytest.raises(REFUSED, match="hello"):
        tokens_to_codes([1], 3, FOREIGN)
    with pytest.raises(REFUSED, match="tokenizer="):
        tokens_to_codes([1], 3)
    with pytest.raises(REFUSED, match="num_codebooks=0"):
        tokens_to_codes("", 0)
