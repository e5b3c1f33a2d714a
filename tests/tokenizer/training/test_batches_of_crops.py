"""Training as a GPU wants it: batches, not items, and no waiting."""

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from models import make_autoencoder, make_tokenizer
from short_runs import LOOP
from toy_training import CONFIG, toy_train

from tokenizer.benchmarks.counting import launches
from tokenizer.training import Trainer
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.autoencoder import AutoencoderTask
from tokenizer.training.clips import scan
from tokenizer.training.decoder import ContinuousDecoderTask, DecoderTask, FinetuneConfig
from tokenizer.training.loaders import MOST_WORKERS, loader_options
from tokenizer.training.losses import waveform_distortion
from tokenizer.training.reconstruction import CropRun, ReconstructionConfig, crop_target


def crop_run(audio, out, **loop):
    return CropRun(scan(audio), out, replace(LOOP, **loop), ReconstructionConfig(), Augmentation())


@pytest.mark.parametrize("task_class", [AutoencoderTask, DecoderTask, ContinuousDecoderTask])
def test_held_out_crops_are_validated_together_as_one_by_one(audio, tmp_path, task_class):
    run = crop_run(audio, tmp_path, batch_size=5)
    model = make_tokenizer()
    arguments = (model, model.autoencoder.decoder, FinetuneConfig())
    task = task_class(*((make_autoencoder(),) if task_class is AutoencoderTask else arguments), run)
    task.module.eval()
    sums = defaultdict(float)
    with torch.no_grad():
        together = task.validate(task.module)
        for index in range(len(task.held_out)):
            batch = {name: value[None] for name, value in task.held_out[index].items()}
            crop, scale = crop_target(task.autoencoder, batch)
            items = [torch.Generator().manual_seed(index)]
            for name, estimate in task.estimates(task.module, crop / scale, items):
                heard = estimate[..., : crop.shape[-1]] * scale
                sums[f"mel_{name}"] += float(task.mel(heard, crop))
                sums[f"snr_{name}"] -= 10 * float(waveform_distortion(heard, crop))
    alone = {name: value / len(task.held_out) for name, value in sums.items()}
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_a_step_waits_for_the_device_twice_at_most(audio, tmp_path):
    run = crop_run(audio, tmp_path)
    task = AutoencoderTask(make_autoencoder(), run)
    trainer = Trainer(task, run.loop, tmp_path, description={}, progress=False)
    for group in trainer.optimizer.param_groups:
        group["fused"] = True  # As on a GPU.
    batches = task.batches(0, 0, 1)
    trainer.step(batches)
    assert launches(lambda: trainer.step(batches), "cpu").waits <= 2


def test_workers_follow_the_cores_where_a_gpu_waits_for_them(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert loader_options(None, cpu)["num_workers"] == 1
    assert not loader_options(None, cpu)["pin_memory"]
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(24), raising=False)
    assert loader_options(None, gpu)["num_workers"] == MOST_WORKERS
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_options(None, gpu)["num_workers"] == 6
    assert loader_options(0, gpu) == {"num_workers": 0, "pin_memory": True}


def test_a_compiled_model_takes_the_same_steps(tmp_path, monkeypatch):
    compiled = []

    def compile(module):
        compiled.append(module)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    weights = []
    for name, config in (("plain", CONFIG), ("compiled", replace(CONFIG, compile=True))):
        weights.append(toy_train(tmp_path / name, config).weight)
    assert len(compiled) == 1
    assert torch.equal(*weights)
