from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from models import RATE
from short_runs import LOOP, interrupt_at, read_log, short_finetune, short_train

from tokenizer.training.adversarial import (
    AdversarialConfig,
    Adversary,
    BandDiscriminator,
    Discriminators,
    PeriodDiscriminator,
    adversarial_loss,
    balance,
    discriminator_loss,
    feature_loss,
    make_adversary,
)

SMALL = AdversarialConfig(adversarial_weight=0.5, feature_weight=0.5, discriminator_channels=2)


def train(audio, out, adversarial=SMALL, loop=LOOP):
    return short_train(audio, out, adversarial=adversarial, loop=loop).state_dict()


def train_log(out):
    return [line for line in read_log(out) if "train/loss" in line]


def test_a_period_discriminator_sees_every_nth_sample_only():
    # Its columns never mix: what happens at phase 1 leaves the maps at phase 0 as they were.
    torch.manual_seed(0)
    member = PeriodDiscriminator(3, 2)
    x = torch.randn(1, 1, 900)
    changed = x.clone()
    changed[..., 1::3] += 1
    for a, b in zip(member(x), member(changed), strict=True):
        assert torch.equal(a[..., [0, 2]], b[..., [0, 2]])
        assert not torch.equal(a[..., 1], b[..., 1])


def test_a_band_discriminator_keeps_bands_apart():
    torch.manual_seed(0)
    member = BandDiscriminator(512, 2)
    t = torch.arange(4096)
    low, high = torch.sin(t * 0.05), torch.sin(t * 2.9)
    with torch.inference_mode():
        base, changed = member(low[None, None]), member((low + high)[None, None])
    # Five maps a band, from the lowest band to the highest, then the scores.
    distances = [float((a - b).abs().mean()) for a, b in zip(base[:-1], changed[:-1], strict=True)]
    assert max(distances[:5]) < 0.01 * max(distances[20:-1]), distances


def test_channels_are_judged_one_by_one():
    torch.manual_seed(0)
    judges = Discriminators((2, 3), (256,), 2)
    x = torch.randn(2, 2, 1000)
    stereo, single = judges(x), judges(x[1:, :1])
    for a, b in zip(stereo, single, strict=True):
        assert torch.allclose(a[-1][2:3], b[-1], atol=1e-5)


def test_short_crops_are_refused():
    with pytest.raises(ValueError, match=r"\b1025\b.*\b1000\b"):
        Discriminators(channels=2)(torch.zeros(1, 1, 1000))


def test_losses_at_their_ends():
    ones = [[torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)]]
    zeros = [[torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)]]
    assert float(discriminator_loss(ones, zeros)) == 0
    assert float(discriminator_loss(zeros, ones)) == 2
    assert float(adversarial_loss(ones)) == 0
    assert float(adversarial_loss(zeros)) == 1
    twos, minus = ([[scale * x for x in ones[0]]] for scale in (2, -2))
    assert float(discriminator_loss(twos, minus, hinge=True)) == 0
    assert float(discriminator_loss(minus, twos, hinge=True)) == 6
    assert float(adversarial_loss(twos, hinge=True)) == -2
    assert float(feature_loss(ones, ones)) == 0
    assert float(feature_loss(ones, zeros)) == 1


def test_balance_gives_each_term_its_share_whatever_its_scale():
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8))[0]
    gradients = []
    for factor in (1.0, 1e6):
        x = torch.zeros(8, requires_grad=True)
        loss = balance(
            x,
            3 * (x * directions[0]).sum() + 5,
            {
                "a": factor * (x * directions[1]).sum(),
                "b": 7 * (x * directions[2]).sum(),
                "none": 0 * x.sum(),
                "broken": torch.nan * x.sum(),
            },
            {"a": 0.5, "b": 2.0, "none": 1.0, "broken": 1.0},
        )
        assert float(loss.detach()) == pytest.approx(5)
        loss.backward()
        gradients.append(x.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)
    expected = 3 * directions[0] + 1.5 * directions[1] + 6 * directions[2]
    assert torch.allclose(gradients[0], expected, atol=1e-5)


def test_judged_and_judges_get_their_own_gradients_only():
    adversary = make_adversary(SMALL, "no", RATE, seed=0)
    assert isinstance(adversary, Adversary)
    estimate = torch.randn(2, 1, 2000, requires_grad=True)
    target = torch.randn(2, 1, 2000)
    losses = adversary.add({"loss": (estimate - target).square().mean()}, estimate, target)
    losses["loss"].backward(retain_graph=True)
    assert estimate.grad is not None
    assert all(p.grad is None for p in adversary.parameters())
    estimate.grad = None
    losses["discriminator"].backward()
    assert estimate.grad is None
    assert all(p.grad is not None for p in adversary.parameters())


def test_some_steps_and_a_piece_of_each_crop_are_enough():
    config = replace(SMALL, discriminators="spectral", adversarial_every=2, adversarial_seconds=0.2)
    adversary = make_adversary(config, "no", RATE, seed=0)
    assert adversary is not None
    estimate, target = torch.randn(2, 1, 4000, requires_grad=True), torch.randn(2, 1, 4000)
    places = []
    for step in range(4):
        adversary.step = step
        reconstruction = 1e-9 * (estimate - target).square().mean()
        losses = adversary.add({"loss": reconstruction}, estimate, target)
        assert ("discriminator" in losses) == (step % 2 == 0)
        (gradient,) = torch.autograd.grad(losses["loss"], estimate)
        strong = (gradient.abs() > 10 * gradient.abs().median()).any(1).any(0).nonzero()
        if step % 2 == 0:
            places.append((int(strong.min()), int(strong.max())))
    assert all(last - first < 0.2 * RATE for first, last in places)
    assert places[0] != places[1]


def test_discriminators_learn_and_start_when_told(audio, tmp_path):
    loop = replace(LOOP, steps=60, log_every=10)
    train(audio, tmp_path / "run", replace(SMALL, adversarial_start=10), loop)
    lines = train_log(tmp_path / "run")
    assert "train/discriminator" not in lines[0]
    assert lines[-1]["train/discriminator"] < 0.8 * lines[1]["train/discriminator"]
    assert lines[-1]["train/features"] > 0


def test_adversarial_runs_resume_exactly(audio, tmp_path, monkeypatch):
    config = replace(SMALL, adversarial_start=3)
    whole = train(audio, tmp_path / "whole", config)
    every_step = replace(LOOP, checkpoint_seconds=0.0)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5)
        with pytest.raises(KeyboardInterrupt):
            train(audio, tmp_path / "parts", config, every_step)
    resumed = train(audio, tmp_path / "parts", config, every_step)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    plain = train(audio, tmp_path / "plain", None)
    assert any(not torch.equal(whole[name], plain[name]) for name in whole)


@pytest.fixture
def fresh_accelerator():
    # accelerate keeps the first precision of a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerator")
def test_bf16_survives(audio, tmp_path):
    state = train(audio, tmp_path / "run", loop=replace(LOOP, mixed_precision="bf16"))
    assert all(value.isfinite().all() for value in state.values())
    assert train_log(tmp_path / "run")[-1]["train/skipped"] == 0


def test_finetuning_with_discriminators(audio, tmp_path):
    short_finetune(audio, tmp_path / "run", adversarial=SMALL)
    assert train_log(tmp_path / "run")[-1]["train/adversarial"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": -1.0}, "adversarial_weight.*-1"),
        ({"feature_weight": 1.0}, "adversarial_weight > 0"),
        ({"discriminator_channels": 0}, "discriminator_channels.* 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**options)


def test_accumulated_batches_are_steps_to_the_discriminators(audio, tmp_path):
    """Two batches of one crop are as one batch of two: in time to start, and in what is learnt."""
    config = replace(SMALL, adversarial_start=2)
    for name, sizes in (("one", {}), ("two", {"batch_size": 1, "accumulate": 2})):
        loop = replace(LOOP, steps=4, log_every=1, **sizes)
        train(audio, tmp_path / name, config, loop)
        lines = train_log(tmp_path / name)
        assert ["train/discriminator" in line for line in lines] == [False, False, True, True]


def test_fp16_is_refused():
    with pytest.raises(ValueError, match="'no' or 'bf16'"):
        make_adversary(SMALL, "fp16", RATE, seed=0)
