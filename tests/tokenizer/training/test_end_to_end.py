import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from models import RATE, make_autoencoder, read_row, tone
from short_runs import interrupt_at, read_log

from tokenizer import LatentTokenizer
from tokenizer.cli import main
from tokenizer.training import CropTrainingConfig, end_to_end
from tokenizer.training.adversarial import AdversarialConfig
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.bottlenecks import (
    BOTTLENECKS,
    Bottleneck,
    BottleneckConfig,
    make_bottleneck,
)
from tokenizer.training.clips import scan
from tokenizer.training.end_to_end import EndToEndTask, train_end_to_end
from tokenizer.transcoding.files import write_row

CONFIG = BottleneckConfig(codebooks=4, codebook_size=16, codebook_dim=4, min_codebooks=1)
LOOP = CropTrainingConfig(
    steps=8,
    batch_size=3,
    crop_seconds=0.25,
    learning_rate=3e-3,
    warmup_steps=4,
    log_every=2,
    validate_every=100,
    num_workers=0,
)


@pytest.fixture(autouse=True)
def short_start(monkeypatch):
    monkeypatch.setattr(end_to_end, "_INITIAL_FRAMES", 2000)


def train(
    audio: Path, out: Path, kind: str, loop: CropTrainingConfig = LOOP, **options
) -> LatentTokenizer:
    return train_end_to_end(
        make_autoencoder(),
        scan(audio),
        out,
        kind=kind,
        loop=loop,
        losses=ReconstructionConfig(),
        augmentation=Augmentation(),
        progress=False,
        **({"config": CONFIG} | options),
    )


@pytest.fixture(scope="module", params=BOTTLENECKS)
def run(request, audio, tmp_path_factory) -> tuple[LatentTokenizer, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EndToEndTask, "validate", lambda *_: {})
        out = tmp_path_factory.mktemp(request.param)
        return train(audio, out, request.param, replace(LOOP, steps=60, log_every=5)), out


def test_training_improves_and_says_how_codes_are_used(run):
    lines = [line for line in read_log(run[1]) if "train/loss" in line]
    assert np.mean([x["train/loss"] for x in lines[-3:]]) < lines[0]["train/loss"] - 0.5
    assert 1 < lines[-1]["train/least_perplexity"] <= lines[-1]["train/perplexity"] <= 16


def test_the_run_delivers_a_tokenizer_that_needs_no_training_library(run, tmp_path, monkeypatch):
    tokenizer, _ = run
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    loaded = LatentTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.num_codebooks, loaded.codebook_sizes) == (4, (16,) * 4)
    assert loaded.codes_decoder == "continuous"
    row = loaded.encode_codes(tone(1.0), sampling_rate=RATE)
    assert loaded.decode_codes(row).shape == (1, RATE)
    # Fewer codebooks are a prefix, and cost quality.
    levels = [loaded.noise_level(n) for n in range(1, 5)]
    assert levels == sorted(levels, reverse=True)
    assert 0 < levels[-1] < levels[0] <= 1
    some = loaded.encode_codes(tone(1.0), sampling_rate=RATE, n_codebooks=2)
    assert (some["codes"] == row["codes"][:, :2]).all()
    assert loaded.decode_codes(some).shape == (1, RATE)
    # The statistics that fitting leaves behind are there too.
    assert loaded.code_counts is not None
    assert int(loaded.code_counts.sum()) == 4 * loaded.quantizer.report.frames
    assert not torch.equal(loaded.latents_std, torch.ones(8))
    write_row(tmp_path / "a.ltk", row, loaded)
    assert (read_row(tmp_path / "a.ltk", loaded)["codes"] == row["codes"]).all()


def test_the_tokenizer_is_what_was_trained(run):
    """Encoder, bottleneck and decoder in a row give the audio that the tokenizer gives."""
    tokenizer, _ = run
    quantizer = tokenizer.quantizer
    bottleneck = make_bottleneck(quantizer, CONFIG, frames=100).eval()
    latents = tokenizer.encode(torch.from_numpy(tone(1.0))[None]).latents
    for n in (1, 4):
        out = bottleneck(latents, torch.tensor([n]))
        assert torch.equal(out.codes, tokenizer.quantize(latents, n))
        with torch.no_grad():
            wanted = tokenizer.autoencoder.decoder(out.latents, out.noise_level)
        codes = tokenizer.quantize(latents, n)
        got = tokenizer.decode(
            tokenizer.dequantize(codes), decoder="continuous", n_codebooks=n, gain=torch.ones(1)
        )
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_resumed_equals_uninterrupted(audio, tmp_path, monkeypatch, kind):
    # Entries die within a step, so that their revival is part of what must be repeated.
    options = {"config": replace(CONFIG, dead_share=0.9, codebook_decay=0.5)}
    whole = train(audio, tmp_path / "whole", kind, **options).state_dict()
    every_step = replace(LOOP, checkpoint_seconds=0.0)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            train(audio, tmp_path / "parts", kind, every_step, **options)
    resumed = train(audio, tmp_path / "parts", kind, every_step, **options).state_dict()
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    if kind != "rfsq":
        saved = (tmp_path / "parts" / "checkpoint" / "module.safetensors").read_bytes()
        assert b"cluster_size" in saved
        assert b"embed_avg" in saved
    with pytest.raises(ValueError, match="bottleneck"):
        train(audio, tmp_path / "parts", kind, config=replace(CONFIG, codebook_dropout=0.1))


def test_each_crop_gets_its_own_number_of_codebooks(audio, tmp_path, monkeypatch):
    seen = []
    real = end_to_end.QuantizedAutoencoder.forward

    def forward(self, audio, counts, first_frame, seed=0):
        if self.training:
            seen.append((counts.tolist(), seed))
        return real(self, audio, counts, first_frame, seed)

    monkeypatch.setattr(end_to_end.QuantizedAutoencoder, "forward", forward)
    train(audio, tmp_path / "half", "rvq", replace(LOOP, steps=20, batch_size=4))
    counts = np.array([c for c, _ in seen])
    assert (counts[:, 0] == 4).all()
    assert set(counts[:, 1:].ravel()) == {1, 2, 3, 4}
    assert 0.3 < (counts[:, 1:] < 4).mean() < 0.7
    assert len({s for _, s in seen}) == 20
    seen.clear()
    train(audio, tmp_path / "none", "rvq", config=replace(CONFIG, codebook_dropout=0.0))
    assert {c for counts, _ in seen for c in counts} == {4}


def test_the_commitment_loss_counts_with_discriminators_too(audio, tmp_path):
    adversarial = AdversarialConfig(
        adversarial_weight=0.3, feature_weight=0.3, discriminator_channels=2
    )
    states = []
    for name, weight in (("none", 0.0), ("much", 50.0)):
        config = replace(CONFIG, commitment_weight=weight)
        loop = replace(LOOP, steps=3, batch_size=2)
        options = {"config": config, "adversarial": adversarial}
        states.append(train(audio, tmp_path / name, "rvq", loop, **options).state_dict())
        assert "train/adversarial" in read_log(tmp_path / name)[0]
    name = "autoencoder.encoder.head.weight"
    assert not torch.equal(states[0][name], states[1][name])


@pytest.mark.parametrize("kind", BOTTLENECKS)
def test_bf16_leaves_the_quantizer_in_float32(audio, tmp_path, monkeypatch, kind):
    seen = []
    real = Bottleneck.forward

    def forward(self, latents, counts, seed=0):
        assert torch.is_autocast_enabled("cpu") or not self.training
        out = real(self, latents, counts, seed)
        seen.append(out.latents.dtype)
        return out

    monkeypatch.setattr(Bottleneck, "forward", forward)
    # The library knows one precision per process.
    AcceleratorState._reset_state()
    try:
        tokenizer = train(audio, tmp_path, kind, replace(LOOP, steps=3, mixed_precision="bf16"))
    finally:
        AcceleratorState._reset_state()
    assert set(seen) == {torch.float32}
    assert all(value.isfinite().all() for value in tokenizer.state_dict().values())


@pytest.mark.slow
def test_command(audio, tmp_path, capsys, monkeypatch):
    sizes = ["--preset", "tiny", "--sampling-rate", RATE, "--hop-length", 80, "--latent-dim", 8]
    sizes += ["--encoder-width", 16, "--decoder-width", 16, "--codebooks", 3]
    loop = ["--steps", 3, "--batch-size", 2, "--crop-seconds", 0.25, "--num-workers", 0]

    def latok(*arguments) -> int:
        return main([str(argument) for argument in arguments])

    out = tmp_path / "run"
    command = ["train", audio, "--out", out, "--codebook-size", 16, *sizes, *loop]
    assert latok(*command, "--bottleneck", "rfsq") == 0
    assert "| 3 |" in capsys.readouterr().out
    tokenizer = LatentTokenizer.from_pretrained(out / "model")
    assert tokenizer.quantizer.kind == "projected_fsq"
    assert tokenizer.num_codebooks == 3
    # Started again, the finished run delivers the same.
    assert latok(*command, "--bottleneck", "rfsq") == 0
    assert LatentTokenizer.from_pretrained(out / "model").fingerprint == tokenizer.fingerprint
    capsys.readouterr()
    assert latok(*command, "--bottleneck", "rvq") == 2
    assert "Use the same options" in capsys.readouterr().err
    # From a fitted model on, with its codebooks, which stay what they are.
    fitted, joint = tmp_path / "fitted", tmp_path / "joint"
    fit = ["--codebooks", 3, "--codebook-size", 16, "--iterations", 2]
    assert latok("fit", out / "model", audio, "--out", fitted, *fit) == 0
    model = fitted / "model"
    more = [*sizes, *loop, "--init", model, "--init-quantizer", model, "--bottleneck", "rvq"]
    more += ["--codebook-size", 16, "--codebook-decay", 1, "--exact-share", 0.3]
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    assert latok("train", audio, "--out", joint, *more) == 0
    before, after = (LatentTokenizer.from_pretrained(folder) for folder in (model, joint / "model"))
    assert torch.equal(after.quantizer.codebooks, before.quantizer.codebooks)
    head = "autoencoder.encoder.head.weight"
    assert not torch.equal(after.state_dict()[head], before.state_dict()[head])
    assert {"val/mel_0", "val/mel_3"} < read_log(joint)[-1].keys()
    # Half of the way.
    half = tmp_path / "half"
    assert latok("train", audio, "--out", half, *more, "--init-share", 0.5) == 0
    between = LatentTokenizer.from_pretrained(half / "model")
    assert between.quantizer is None
    for name, value in between.autoencoder.state_dict().items():
        ends = [model.autoencoder.state_dict()[name] for model in (before, after)]
        torch.testing.assert_close(value, sum(ends) / 2)
    assert latok("train", audio, "--out", tmp_path / "d", *sizes, *loop, "--init-share", 0.5) == 2
    assert "--init-share needs --init" in capsys.readouterr().err
    lone = ["--init-quantizer", model]
    assert latok("train", audio, "--out", tmp_path / "e", *sizes, *loop, *lone) == 2
    assert "--init-quantizer needs --bottleneck" in capsys.readouterr().err
    assert latok("train", audio, "--out", tmp_path / "c", *more, "--codebook-size", 32) == 2
    assert "codebook_size 16: this bottleneck has 32" in capsys.readouterr().err
    assert latok("train", audio, "--out", tmp_path / "b", *sizes, *loop, "--bottleneck", "rvq") == 2
    assert "latent-tokenizer[e2e]" in capsys.readouterr().err
