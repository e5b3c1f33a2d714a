import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from launching import launch
from models import DIM, RATE, make_autoencoder, make_tokenizer, tone
from safetensors.torch import load_file
from short_runs import LOOP, interrupt_at, read_log, short_finetune, short_train
from tiny_training import train_stages

from tokenizer import LatentTokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.training import CropTrainingConfig, decoder as decoder_module, reconstruction
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import ReconstructionConfig
from tokenizer.training.clips import scan
from tokenizer.training.decoder import FinetuneConfig
from tokenizer.training.quantizer import (
    FitConfig,
    cache_latents,
    decoder_sensitivity,
    fit_quantizer,
    latent_statistics,
)


def train(
    audio: Path, out: Path, loop: CropTrainingConfig = LOOP, shift: float = 0.0, **options: Any
) -> dict[str, torch.Tensor]:
    autoencoder = make_autoencoder()
    with torch.no_grad():
        autoencoder.encoder.head.bias += shift
    return short_train(audio, out, autoencoder, loop=loop, **options).state_dict()


def finetune(tokenizer: LatentTokenizer, audio: Path, out: Path) -> None:
    short_finetune(audio, out, tokenizer, loop=replace(LOOP, steps=2))


def test_training_improves_and_delivers_averaged_weights(audio, tmp_path):
    long = replace(LOOP, steps=60, learning_rate=3e-3)
    state = train(audio, tmp_path / "run", long)
    first, *_, last = [line for line in read_log(tmp_path / "run") if "train/loss" in line]
    assert last["train/loss"] < first["train/loss"] - 0.3
    assert all(value.isfinite().all() for value in state.values())
    validation = read_log(tmp_path / "run")[-1]
    assert validation["val/snr_clean"] > validation["val/snr_noisy"]
    assert validation["val/mel_clean"] < validation["val/mel_noisy"]


@pytest.mark.slow
def test_two_processes_do_what_one_does(audio, tmp_path):
    """Two processes with two crops each take the steps of one with four."""
    train_stages(audio, tmp_path / "one", 4)
    launch(2, "tiny_training.py", audio, tmp_path / "two", 2)
    for stage in ("stage1", "stage3"):
        one, two = (read_log(tmp_path / processes / stage) for processes in ("one", "two"))
        for mine, theirs in zip(one, two, strict=True):
            for name in mine.keys() - {"train/steps_per_second"}:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-5), name
        mine, theirs = (
            load_file(tmp_path / processes / stage / "checkpoint" / "average.safetensors")
            for processes in ("one", "two")
        )
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            # Adam makes much of the rounding of gradients near zero.
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-4)


def test_resumed_equals_uninterrupted(audio, tmp_path, monkeypatch):
    whole = train(audio, tmp_path / "whole")
    every_step = replace(LOOP, checkpoint_seconds=0.0)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            train(audio, tmp_path / "parts", every_step)
    resumed = train(audio, tmp_path / "parts", every_step)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    losses = [
        [x["train/loss"] for x in read_log(tmp_path / p) if "train/loss" in x]
        for p in ("whole", "parts")
    ]
    assert losses[0][2:] == losses[1][2:]
    # A finished run is left as it is.
    again = train(audio, tmp_path / "parts", every_step)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    # With more steps it is continued, on crops that the shorter run had no part in.
    longer = train(audio, tmp_path / "parts", replace(LOOP, steps=15))
    assert any(not torch.equal(longer[name], whole[name]) for name in whole)
    assert read_log(tmp_path / "parts")[-1]["step"] == 15


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_losses_do_not_depend_on_the_number_of_workers(audio, tmp_path):
    losses = []
    for workers in (0, 1, 4):
        train(audio, tmp_path / str(workers), replace(LOOP, num_workers=workers))
        lines = read_log(tmp_path / str(workers))
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0] == losses[1] == losses[2]


def test_samples_are_reconstructions_to_listen_to(audio, tmp_path):
    train(audio, tmp_path, replace(LOOP, sample_every=12))
    names = {path.name for path in (tmp_path / "samples" / "step-0000012").iterdir()}
    kinds = ("original", "clean", "noisy")
    assert names == {f"{i}-{kind}.wav" for i in range(2) for kind in kinds}


def test_a_run_is_continued_on_its_own_audio_and_model_only(audio, tmp_path):
    others = shutil.copytree(audio, tmp_path / "others")
    first = sorted(others.rglob("*.wav"))[0]
    soundfile.write(first, soundfile.read(first)[0][:-1], RATE)
    moved = shutil.copytree(audio, tmp_path / "moved")
    train(audio, tmp_path / "run", pretrained=True)
    train(moved, tmp_path / "run", pretrained=True)
    for refused, options in (
        ("clips", {"audio": others}),
        ("held_out", {"audio": audio, "num_held_out": 1}),
        ("start", {"audio": audio, "shift": 1.0}),
        ("items_per_step", {"audio": audio, "loop": replace(LOOP, batch_size=3)}),
    ):
        with pytest.raises(ValueError, match=f"'{refused}'"):
            train(out=tmp_path / "run", **{"pretrained": True, **options})

    tokenizer = make_tokenizer()
    finetune(tokenizer, audio, tmp_path / "tuned")
    finetune(make_tokenizer(), audio, tmp_path / "tuned")
    refitted = make_tokenizer()
    assert isinstance(refitted.quantizer, ResidualVectorQuantizer)
    refitted.quantizer.codebooks += 0.5
    with pytest.raises(ValueError, match=r"was trained with .*'start'"):
        finetune(refitted, audio, tmp_path / "tuned")


def test_finetuning_takes_encoder_and_quantizer_to_the_device_of_training(
    audio, tmp_path, monkeypatch
):
    class Begun(Exception):
        pass

    def begin(task, *_, **__):
        tensors = [*task.tokenizer.parameters(), *task.tokenizer.buffers()]
        assert {t.device.type for t in tensors} == {"meta"}
        raise Begun

    monkeypatch.setattr(decoder_module, "training_device", lambda: torch.device("meta"))
    monkeypatch.setattr(reconstruction, "Trainer", begin)
    with pytest.raises(Begun):
        finetune(make_tokenizer(), audio, tmp_path)


def test_silence_is_refused(tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="silent"):
        train(tmp_path, tmp_path / "run")


def test_too_few_latents_for_the_codebooks_are_told(audio, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    with pytest.warns(UserWarning, match=r"\b906 latents.*\b512 entries"):
        fit_quantizer(
            tokenizer,
            scan(audio),
            ResidualVectorQuantizer(DIM, 1, 512),
            cache=tmp_path / "x.npy",
            config=FitConfig(),
            progress=False,
        )


def test_one_codebook_is_finetuned_for(audio, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    quantizer = ResidualVectorQuantizer(DIM, 1, 16)
    fit_quantizer(tokenizer, scan(audio), quantizer, cache=tmp_path / "x.npy", config=FitConfig())
    finetune(tokenizer, audio, tmp_path)
    assert tokenizer.finetuned_decoder is not None


def test_cached_latents_are_those_of_the_audio_and_reused(audio, tmp_path):
    audio = shutil.copytree(audio, tmp_path / "audio")
    tokenizer = make_tokenizer()
    config = FitConfig(segment_seconds=0.5, max_frames=10_000)
    path = tmp_path / "latents.npy"
    source = cache_latents(tokenizer, scan(audio), path, config)
    first = torch.from_numpy(tone(1.5, seed=0)[:, : RATE // 2])
    rounded = (first * 32768).round() / 32768
    wanted = tokenizer.encode(rounded[None]).latents[0].T
    torch.testing.assert_close(source.rows(0, len(wanted)), wanted, atol=1e-3, rtol=1e-3)
    assert len(source) == 6 * 3 * len(wanted)
    before = path.stat().st_mtime_ns
    cache_latents(tokenizer, scan(audio), path, config)
    assert path.stat().st_mtime_ns == before
    few = cache_latents(tokenizer, scan(audio), path, replace(config, max_frames=200))
    assert len(few) == 3 * len(wanted)
    with torch.no_grad():
        tokenizer.autoencoder.encoder.head.bias += 1
    other = cache_latents(tokenizer, scan(audio), path, replace(config, max_frames=200))
    assert not torch.allclose(other.rows(0, 10), few.rows(0, 10))
    # Files that were changed in place, to others of the same length.
    for file in audio.rglob("*.wav"):
        soundfile.write(file, -soundfile.read(file)[0], RATE)
    changed = cache_latents(tokenizer, scan(audio), path, replace(config, max_frames=200))
    assert not torch.allclose(other.rows(0, 10), changed.rows(0, 10))
    mean, std = latent_statistics(changed)
    other = changed
    everything = other.rows(0, len(other))
    torch.testing.assert_close(mean, everything.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(std, everything.std(0, correction=0), atol=1e-5, rtol=1e-4)


def test_decoder_sensitivity_is_that_of_the_decoder(audio, tmp_path):
    tokenizer = make_tokenizer()
    with torch.no_grad():  # dimension 2 is not heard at all, dimension 5 more than others
        for layer in (
            tokenizer.autoencoder.decoder.linear,
            tokenizer.autoencoder.decoder.backbone.project,
        ):
            layer.weight[:, 2] = 0
            layer.weight[:, 5] *= 8
    config = FitConfig(segment_seconds=0.5, sensitivity_batches=6)
    source = cache_latents(tokenizer, scan(audio), tmp_path / "latents.npy", config)
    metric = decoder_sensitivity(tokenizer, source, config)
    assert torch.equal(metric, metric.T)
    assert float(torch.linalg.eigvalsh(metric.double()).min()) > -1e-6
    assert float(metric[2, 2]) < 1e-6
    assert int(metric.diagonal().argmax()) == 5


@pytest.mark.parametrize("standardization", ["none", "channel", "decoder"])
def test_fit_puts_quantizer_and_statistics_in_place(audio, tmp_path, standardization):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    quantizer = ResidualVectorQuantizer(DIM, 3, 8, standardization=standardization)
    config = FitConfig(segment_seconds=0.5, sensitivity_batches=2)
    fit_quantizer(
        tokenizer, scan(audio), quantizer, cache=tmp_path / "z.npy", config=config, progress=False
    )
    assert tokenizer.num_codebooks == 3
    z = tokenizer.encode(torch.from_numpy(tone(1.5))[None]).latents
    normal = tokenizer.normalize_latents(z)
    assert float(normal.std()) == pytest.approx(1, abs=0.4)
    errors = [
        float((tokenizer.dequantize(tokenizer.quantize(z, n)) - z).square().mean()) for n in (1, 3)
    ]
    assert errors[1] < errors[0] < float((z - z.mean()).square().mean())
    again = ResidualVectorQuantizer(DIM, 3, 8, standardization=standardization)
    other = LatentTokenizer.from_autoencoder(make_autoencoder())
    fit_quantizer(
        other, scan(audio), again, cache=tmp_path / "z.npy", config=config, progress=False
    )
    assert torch.equal(again.codebooks, quantizer.codebooks)


def test_finetuning_changes_the_finetuned_decoder_only(audio, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.set_quantizer(tokenizer.quantizer)  # drops the decoder of the fixture
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}

    def finetune(model: LatentTokenizer) -> None:
        kinds = {"loop": replace(LOOP, steps=40), "finetune": FinetuneConfig(min_codebooks=1)}
        short_finetune(audio, tmp_path / "run", model, **kinds)

    finetune(tokenizer)
    for name, value in before.items():
        assert torch.equal(tokenizer.state_dict()[name], value), name
    assert tokenizer.codes_decoder == "finetuned"
    lines = read_log(tmp_path / "run")
    assert {"val/mel_1", "val/snr_4"} <= lines[-1].keys()
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    # Finished runs and resumed ones give the same decoder.
    other = deepcopy(tokenizer)
    other.set_quantizer(other.quantizer)
    finetune(other)
    ours, theirs = tokenizer.finetuned_decoder, other.finetuned_decoder
    assert ours is not None
    assert theirs is not None
    for name, value in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value), name


def test_finetuning_the_continuous_decoder_changes_it_only(audio, tmp_path):
    tokenizer = make_tokenizer()
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    codes = tokenizer.codes_fingerprint
    short_finetune(
        audio,
        tmp_path / "run",
        tokenizer,
        loop=replace(LOOP, steps=60),
        losses=ReconstructionConfig(noise_range=(-1.0, 0.4)),
        finetune=FinetuneConfig(decoder="continuous"),
    )
    changed = {k for k, v in tokenizer.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("autoencoder.decoder.") for name in changed)
    assert tokenizer.codes_fingerprint == codes
    lines = read_log(tmp_path / "run")
    assert lines[-1]["val/mel_clean"] < lines[-1]["val/mel_noisy"]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    with pytest.raises(ValueError, match='"finetuned" or "continuous", got \'both\''):
        FinetuneConfig(decoder="both")
    with pytest.raises(ValueError, match="continue_finetuned"):
        FinetuneConfig(decoder="continuous", continue_finetuned=True)


def test_refusals(audio, tmp_path):
    for crop_seconds in (0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="crop_seconds"):
            replace(LOOP, crop_seconds=crop_seconds)
    for wrong, value in (
        ("lowpass", 2.0),
        ("lowpass_range", (9000.0, 100.0)),
        ("mix_range", (5.0, -5.0)),
        ("level_jitter", -1.0),
    ):
        with pytest.raises(ValueError, match=wrong):
            Augmentation(**{wrong: value})
    with pytest.raises(ValueError, match="num_held_out"):
        train(audio, tmp_path, num_held_out=-1)
    with pytest.raises(ValueError, match=r"segment_seconds.*inf"):
        FitConfig(segment_seconds=math.inf)
    with pytest.raises(ValueError, match="mel_weight"):
        ReconstructionConfig(mel_weight=math.nan)
    with pytest.raises(ValueError, match="mel_scales_per_step"):
        ReconstructionConfig(mel_scales_per_step=9)
    for overlap in (0, 33):
        with pytest.raises(ValueError, match=rf"mel_overlap .*\b{overlap}\b"):
            ReconstructionConfig(mel_overlap=overlap)
    with pytest.raises(ValueError, match="max_frames"):
        FitConfig(max_frames=0)
    raw = LatentTokenizer.from_autoencoder(make_autoencoder())
    with pytest.raises(RuntimeError, match="latok fit"):
        short_finetune(audio, tmp_path, raw)
