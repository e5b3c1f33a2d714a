"""The trainer, on a model of five numbers."""

import json
from dataclasses import replace
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import TypeCheckError
from launching import launch
from safetensors.torch import load_file
from short_runs import interrupt_at, read_log
from toy_training import CONFIG, ToyModel, ToyTask, toy_train

from tokenizer.training import Trainer, TrainingConfig, WeightAverage, load_average, trainer
from tokenizer.training.config import learning_rate, process_seed, step_seed


@pytest.fixture(autouse=True)
def _new_process():
    # accelerate keeps its settings for as long as a process lives.
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_learns_and_delivers_the_average(tmp_path):
    config = replace(CONFIG, steps=12, ema_decay=0.5, weight_decay=0.0)
    model = toy_train(tmp_path, config, ToyTask(noise=False))
    # The same by hand.
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=(0.9, 0.98), weight_decay=0.0)
    average = torch.zeros(3)
    for step, batch in enumerate(islice(ToyTask().batches(0, 0, 1), 12)):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config)
        optimizer.zero_grad()
        (weight - batch["values"]).square().mean().backward()
        optimizer.step()
        average.lerp_(weight.detach(), 1 - min(0.5, (step + 1) / (step + 10)))
    torch.testing.assert_close(model.weight.detach(), average)
    fresh = ToyModel()
    load_average(tmp_path / "checkpoint", fresh)
    assert torch.equal(fresh.weight, model.weight)
    lines = read_log(tmp_path)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert (tmp_path / "curves.csv").read_text().startswith("step,train/loss,val/loss")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((tmp_path / "tensorboard").iterdir())
    validations = [line for line in lines if "val/loss" in line]
    assert [line["step"] for line in validations] == [4, 8, 12]
    expected = float((average - 1).square().mean())
    assert validations[-1]["val/loss"] == pytest.approx(expected, rel=1e-4)
    folders = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert folders == ["step-0000006", "step-0000012"]
    suffixes = {p.suffix for p in (tmp_path / "checkpoint").iterdir()}
    assert suffixes == {".safetensors", ".json"}


def test_zero_validates_at_the_end_only_and_shows_nothing(tmp_path):
    toy_train(tmp_path, replace(CONFIG, validate_every=0, sample_every=0))
    assert [line["step"] for line in read_log(tmp_path) if "val/loss" in line] == [8]
    assert not (tmp_path / "samples").exists()


def test_accumulated_batches_count_as_one(tmp_path):
    parts = toy_train(tmp_path / "a", replace(CONFIG, steps=5, accumulate=2), ToyTask(noise=False))
    whole = toy_train(tmp_path / "b", replace(CONFIG, steps=5), ToyTask(rows=4, noise=False))
    torch.testing.assert_close(whole.weight, parts.weight)


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(steps=100, learning_rate=2.0, warmup_steps=10)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert max(rates) == rates[9] == pytest.approx(2.0, rel=1e-3)
    assert learning_rate(100, config) == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_seeds_differ_between_steps_parts_and_processes_and_may_be_large(tmp_path):
    config = replace(CONFIG, steps=2, seed=20_261_105)
    assert torch.isfinite(toy_train(tmp_path, config).weight).all()
    places = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert len({process_seed(config, *place) for place in places}) == 4
    # The seeds of version 0.1: runs that it began are continued as it would have.
    assert process_seed(replace(CONFIG, seed=7), 11, 2, 3) == 7_154_851_709_773
    assert step_seed(replace(CONFIG, seed=7), 11) == 7_063_032_288
    assert process_seed(replace(CONFIG, seed=2**62), 0, 0, 0) < 2**63
    toy_train(tmp_path / "large", replace(CONFIG, steps=2, seed=2**62))


def test_gradients_are_clipped(tmp_path):
    config = replace(CONFIG, steps=1, learning_rate=1.0, warmup_steps=0, gradient_clip=1e-9)
    model = toy_train(tmp_path, config)
    # AdamW would take a step of 1 for any gradient well above its epsilon of 1e-8.
    assert float(model.weight.detach().abs().max()) < 0.2


def test_batches_without_finite_gradient_are_skipped(tmp_path):
    good = toy_train(tmp_path / "a", replace(CONFIG, steps=6), ToyTask(nan_at=(2, 3)))
    assert torch.isfinite(good.weight).all()
    assert [x["train/skipped"] for x in read_log(tmp_path / "a") if "train/skipped" in x] == [0, 2]
    with pytest.raises(RuntimeError, match=r"\b20\b"):
        toy_train(tmp_path / "b", replace(CONFIG, steps=40), ToyTask(nan_at=range(5, 40)))


def test_the_scaler_of_float16_learns_from_overflows(tmp_path, monkeypatch):
    class Half(Accelerator):
        def __init__(self, **_: object) -> None:
            super().__init__(cpu=True)
            # As on a GPU, where alone `mixed_precision="fp16"` is allowed.
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
            self.state._mixed_precision, self.native_amp = "fp16", True

    monkeypatch.setattr(trainer, "Accelerator", Half)
    config = replace(CONFIG, steps=30)
    model = toy_train(tmp_path, config, ToyTask(noise=False, nan_at={0, 1, 5, 6, 12}))
    assert torch.isfinite(model.weight).all()
    saved = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    # Halved five times at least: again where a scaled gradient was beyond float16.
    assert saved["scaler"]["scale"] <= 2.0**11


def test_weight_average_forgets_the_start_leaves_out_what_is_frozen_and_swaps_back():
    model = ToyModel()
    model.other.requires_grad_(False)
    average = WeightAverage(model, 0.9)
    assert list(average.values) == ["weight"]
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(200):
        average.update(model, step)
    torch.testing.assert_close(average.values["weight"], torch.ones(3))
    with torch.no_grad():
        model.weight.fill_(2.0)
    average.swap(model)
    assert float(model.weight.detach().mean()) == pytest.approx(1)
    average.swap(model)
    assert (model.weight == 2).all()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_killed_run_is_resumed_bit_for_bit(tmp_path, precision):
    config = replace(CONFIG, steps=9, accumulate=2, checkpoint_every=3, mixed_precision=precision)
    whole = toy_train(tmp_path / "a", config)
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "b", config, ToyTask(kill_at=2 * 7 + 1))
    assert json.loads((tmp_path / "b/checkpoint/state.json").read_text())["step"] == 6
    # Lines after the checkpoint are written again, not twice; a line that was cut short is dropped.
    with (tmp_path / "b" / "log.jsonl").open("a") as stream:
        stream.write('{"step": 99')
    resumed = toy_train(tmp_path / "b", config)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.other, whole.other)
    logs = [
        [{k: v for k, v in x.items() if "per_second" not in k} for x in read_log(tmp_path / name)]
        for name in "ab"
    ]
    assert logs[0] == logs[1]
    # Killed between the two renames of a checkpoint, while another was being written.
    (tmp_path / "b" / "checkpoint").rename(tmp_path / "b" / "checkpoint.old")
    (tmp_path / "b" / "checkpoint.new").mkdir()
    # A finished run takes no further step.
    again = toy_train(tmp_path / "b", config, ToyTask(kill_at=0))
    assert torch.equal(again.weight, whole.weight)


def test_a_run_is_continued_with_more_steps(tmp_path, monkeypatch):
    # With a constant rate, a run of 4 and then 9 steps is a run of 9.
    config = replace(CONFIG, learning_rate=1e-2, warmup_steps=10**6)
    whole = toy_train(tmp_path / "a", replace(config, steps=9))
    toy_train(tmp_path / "b", replace(config, steps=4))
    longer = toy_train(tmp_path / "b", replace(config, steps=9))
    assert torch.equal(longer.weight, whole.weight)
    assert [x["step"] for x in read_log(tmp_path / "b") if "val/loss" in x] == [4, 8, 9]
    # An unfinished one too.
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "c", replace(config, steps=4, checkpoint_every=2))
    monkeypatch.undo()
    assert torch.equal(toy_train(tmp_path / "c", replace(config, steps=9)).weight, whole.weight)
    with pytest.raises(ValueError, match=r"\b9 steps.*\b8\b"):
        toy_train(tmp_path / "b", replace(config, steps=8))


def test_what_differs_from_the_run_of_before_is_named(tmp_path):
    toy_train(tmp_path, replace(CONFIG, steps=2), data="a")
    toy_train(tmp_path, replace(CONFIG, steps=2, log_every=1, num_workers=3), data="a")
    # As many values per step, in another number of batches.
    toy_train(tmp_path, replace(CONFIG, steps=2, batch_size=1, accumulate=2), data="a")
    for change, now in (
        ({"learning_rate": 0.5}, r"'learning_rate': 0\.1.*'learning_rate': 0\.5"),
        ({"batch_size": 3}, r"'items_per_step': 2.*'items_per_step': 3"),
        ({}, "'data': 'a'.*'data': 'b'"),
    ):
        with pytest.raises(ValueError, match=now):
            toy_train(tmp_path, replace(CONFIG, steps=2, **change), data="b" if not change else "a")


def test_a_changed_step_is_no_finished_run(tmp_path):
    toy_train(tmp_path, replace(CONFIG, steps=2))
    path = tmp_path / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"step": 10**18}))
    with pytest.raises(ValueError, match="checksum"):
        toy_train(tmp_path, replace(CONFIG, steps=2))
    path.write_text(json.dumps(dict(sorted(state.items()))))
    toy_train(tmp_path, replace(CONFIG, steps=2))


@pytest.mark.parametrize("family", ["tokenizer", "generative"])
def test_runs_of_version_0_1_are_resumed(tmp_path, family):
    """It named the items of a step otherwise, and the steps and the like in the settings."""
    whole = toy_train(tmp_path / "a", replace(CONFIG, steps=6))
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path / "b", replace(CONFIG, steps=6, checkpoint_every=2), ToyTask(kill_at=4))
    path = tmp_path / "b" / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    items = state["config"].pop("items_per_step")
    old = {"crops_per_step": items} if family == "tokenizer" else {"batch_size": 2, "accumulate": 1}
    state["config"] |= {"steps": 6, **old}
    del state["checksum"]  # it had none
    path.write_text(json.dumps(state))
    assert torch.equal(toy_train(tmp_path / "b", replace(CONFIG, steps=6)).weight, whole.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 2.0), ("batch_size", 0), ("accumulate", 0), ("log_every", 0),
        ("validate_every", -1), ("validate_every", True), ("seed", -1), ("seed", 2**63),
        ("learning_rate", float("nan")), ("gradient_clip", float("inf")), ("ema_decay", 1.5),
        ("learning_rate", "fast"), ("mixed_precision", "fp8"), ("mixed_precision", None),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(name, value):
    # Where annotations are checked at run time, a wrong type is refused before the config sees it.
    with pytest.raises((ValueError, TypeCheckError), match=name):
        replace(CONFIG, **{name: value})


def test_processes_that_would_train_alone_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"\b2 processes.*accelerate launch --cpu"):
        Trainer(ToyTask(), CONFIG, tmp_path / "run", description={}, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(tmp_path, kind):
    # Two processes with a batch each are one with two accumulated; and they resume.
    config = replace(CONFIG, steps=6, accumulate=2)
    whole = toy_train(tmp_path / "one", config, ToyTask(noise=False))
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if kind == "fsdp" else {}
    for steps in (4, 6):
        launch(2, "toy_training.py", tmp_path / "two", steps, **sharded)
    average = load_file(tmp_path / "two" / "checkpoint" / "average.safetensors")
    torch.testing.assert_close(average["weight"], whole.weight.detach())
    one, two = (
        [x["train/loss"] for x in read_log(tmp_path / n) if "train/loss" in x]
        for n in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-4)
