"""``export-llm`` from a trained run to codes, and grouped models on the command line."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from prepared_data import write_prepared
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from generative import CodeRanges, CodeSampling, load_run, tokens_to_codes
from generative.cli import main

SMALL = ["--steps", 2, "--batch-size", 4, "--crop-frames", 16, "--warmup-steps", 1]
SMALL += ["--num-workers", 0, "--sample-every", 0, "--held-out", 0.2]
SMALL += ["--width", 32, "--depth", 1, "--heads", 2]


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _new_process():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("llm")
    tokenizer.save_pretrained(root / "tokenizer")
    write_prepared(root / "data", tokenizer)
    return root


def train(folder, name, *options):
    shared = ["--tokenizer", folder / "tokenizer", "--out", folder / name, "--codebooks", 2]
    assert call("train-lm", folder / "data", *shared, *SMALL, *options) == 0


def test_a_flat_run_is_exported_and_generates_the_same(folder, capsys):
    train(folder, "flat", "--pattern", "flatten")
    assert call("export-llm", folder / "flat", "--out", folder / "llm") == 0
    assert "captions" in capsys.readouterr().out
    llama = AutoModelForCausalLM.from_pretrained(folder / "llm")
    words = AutoTokenizer.from_pretrained(folder / "llm")
    ours, tokenizer, _ = load_run(folder / "flat")
    ranges = CodeRanges(llama.config.codec["codebook_sizes"], stop=False)
    ids = llama.generate(
        **words("<label_rain><start>", return_tensors="pt"),
        logits_processor=LogitsProcessorList([ranges]),
        max_new_tokens=20,
        do_sample=False,
    )
    codes = tokens_to_codes(ids[0], 2, words)
    wanted = ours.sample(
        {"label": torch.tensor([ours.labels.index("rain")])},
        10,
        torch.Generator(),
        sampling=CodeSampling(temperature=0),
    )
    assert np.array_equal(codes, wanted[0].numpy())
    assert tokenizer.decode_codes(codes).shape[1] > 0
    assert call("export-llm", folder / "flat", "--out", folder / "flat") == 2


def test_other_patterns_are_not_exported(folder, capsys):
    train(folder, "grouped", "--pattern", "grouped", "--group-frames", 3)
    model, _, _ = load_run(folder / "grouped")
    assert model.config.group_frames == 3
    out = folder / "clips"
    assert call("sample", folder / "grouped", "--seconds", 0.4, "--out", out) == 0
    assert (out / "000.wav").exists()
    assert call("export-llm", folder / "grouped", "--out", folder / "no") == 2
    assert "grouped" in capsys.readouterr().err
    assert not (folder / "no").exists()
