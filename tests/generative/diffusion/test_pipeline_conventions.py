"""What users of `diffusers` expect of a pipeline: names, saving, loading, offloading, callbacks."""

import subprocess
import sys
from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import AudioLDM2Pipeline, AudioPipelineOutput, DiffusionPipeline, StableAudioPipeline
from models import DIM, RATE, REFUSED

from generative import LatentDiffusion, LatentDiffusionPipeline, TextEncoder, make_scheduler

SHORT = {"seconds": 0.2, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(tokenizer):
    torch.manual_seed(0)
    model = LatentDiffusion(DIM, ("birds", "rain"), width=32, depth=2, heads=2)
    model.set_statistics(tokenizer.latents_mean, tokenizer.latents_std)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return quiet(LatentDiffusionPipeline(model.eval(), make_scheduler(), tokenizer))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_names_are_those_of_the_audio_pipelines(pipe):
    ours = signature(pipe.__call__).parameters
    theirs = set()
    for kind in (StableAudioPipeline, AudioLDM2Pipeline):
        theirs |= set(signature(kind.__call__).parameters) - {"self"}
    # Embeddings of texts, DDIM's eta, the callback that they deprecate, and AudioLDM2's language
    # model have no counterpart. `audio`, `sampling_rate` and `keep_seconds` keep parts of a
    # recording, where Stable Audio starts from a noisy one.
    foreign = ("embeds", "eta", "attention", "callback", "initial_audio", "audio_start")
    foreign += ("transcription", "max_new_tokens")
    assert {name for name in theirs if not any(word in name for word in foreign)} <= set(ours)
    # Our length has three names.
    lengths = [
        pipe("rain", num_inference_steps=2, **{name: 0.2}).audios.shape[-1]
        for name in ("seconds", "audio_length_in_s", "audio_end_in_s")
    ]
    assert lengths == [round(0.2 * RATE)] * 3
    assert isinstance(pipe("rain", **SHORT), AudioPipelineOutput)


class Captions(TextEncoder):
    """A text encoder whose embeddings are the lengths of the texts."""

    name, width = "lengths", 4  # pyright: ignore

    def __init__(self):
        pass

    def __call__(self, captions, device):
        lengths = torch.tensor([float(len(text)) for text in captions], device=device)
        return lengths[:, None, None] * torch.ones(4), torch.ones(len(captions), 1).bool()


def test_negative_prompts_lead_away(pipe, monkeypatch):
    conditioner = pipe.model.conditioner
    monkeypatch.setattr(conditioner, "_encoder", Captions())
    monkeypatch.setattr(conditioner, "text", torch.nn.Linear(4, 32))
    monkeypatch.setattr(conditioner, "text_norm", torch.nn.Identity())
    options = SHORT | {"generator": seeded(), "output_type": "latent"}

    def draw(**named):
        return pipe(**options | {"generator": seeded()} | named).audios

    assert torch.equal(draw(prompt="a dog"), draw(caption="a dog"))
    plain = draw(prompt="a dog", guidance_scale=3.0)
    away = draw(prompt="a dog", negative_prompt="loud noise", guidance_scale=3.0)
    assert not torch.allclose(plain, away)
    # At scale 0 all that is left is what guidance leads away from; without guidance, nothing of it.
    at_zero = draw(prompt="a dog", negative_prompt="loud noise", guidance_scale=0.0)
    torch.testing.assert_close(at_zero, draw(prompt="loud noise"))
    assert torch.equal(draw(prompt="a dog", negative_prompt="x"), draw(prompt="a dog"))


def test_the_general_class_loads_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is LatentDiffusionPipeline
    one, other = (each("rain", generator=seeded(), **SHORT).audios for each in (pipe, loaded))
    assert np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["generative", "diffusers"])
def test_importing_generative_is_all_that_it_takes(pipe, tmp_path, first):
    pipe.save_pretrained(tmp_path)
    imports = ["import generative", "from diffusers import DiffusionPipeline"]
    script = "; ".join(imports if first == "generative" else reversed(imports))
    script += "; import sys; print(type(DiffusionPipeline.from_pretrained(sys.argv[1])).__name__)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == "LatentDiffusionPipeline"


def test_variants_and_shards(pipe, tmp_path):
    half = LatentDiffusionPipeline(pipe.model, make_scheduler(), pipe.tokenizer)
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    half.save_pretrained(tmp_path, variant="fp16")
    assert len(list(tmp_path.glob("model/diffusion_pytorch_model-*.safetensors"))) > 1
    assert len(list(tmp_path.glob("*/*model.fp16.safetensors"))) == 2
    wanted = pipe("rain", generator=seeded(), **SHORT).audios
    for options in ({}, {"variant": "fp16"}):
        loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path, **options))
        assert np.array_equal(loaded("rain", generator=seeded(), **SHORT).audios, wanted)
    with pytest.raises(ValueError, match="bf16"):
        DiffusionPipeline.from_pretrained(tmp_path, variant="bf16")


def test_half_precision_changes_little(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = quiet(DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16))
    one, other = (each("rain", generator=seeded(), **SHORT).audios for each in (pipe, half))
    assert np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_offloading_brings_each_model_to_the_device(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    moved = quiet(LatentDiffusionPipeline.from_pretrained(tmp_path))
    moved.enable_model_cpu_offload(device="cpu")
    arrived = []
    for name in ("model", "tokenizer"):
        hook = getattr(moved, name)._hf_hook

        def arrive(module, *args, name=name, real=hook.pre_forward, **options):
            arrived.append(name)
            return real(module, *args, **options)

        hook.pre_forward = arrive
    options = SHORT | {"audio": np.zeros((1, RATE // 5), np.float32), "sampling_rate": RATE}
    options["keep_seconds"] = [(0, 0.1)]
    one, other = (each("rain", generator=seeded(), **options).audios for each in (pipe, moved))
    assert np.array_equal(one, other)
    # The tokenizer encodes what is kept, the model fills the rest, the tokenizer decodes.
    assert arrived == ["tokenizer", "model", "tokenizer"]


def test_callbacks_get_the_tensors_that_they_ask_for(pipe):
    seen = []

    def look(_, step, timestep, tensors):
        del timestep
        seen.append((step, {name: tuple(value.shape) for name, value in tensors.items()}))

    out = pipe("rain", generator=seeded(), callback_on_step_end=look, **SHORT)
    # The form of `latents=` and of the output.
    assert seen == [(step, {"latents": tuple(out.latents.shape)}) for step in (0, 1)]
    seen.clear()
    options = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": []}
    pipe("rain", **options, **SHORT)
    assert seen == [(0, {}), (1, {})]
    with pytest.raises(REFUSED, match="prompt_embeds"):
        pipe("rain", callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"], **SHORT)


def test_contradictions_are_refused(pipe):
    with pytest.raises(REFUSED, match="caption and prompt"):
        pipe(caption="a", prompt="b", **SHORT)
    with pytest.raises(REFUSED, match="seconds and audio_end_in_s"):
        pipe("rain", audio_end_in_s=3.0, **SHORT)
    with pytest.raises(REFUSED, match=r"2 of label.* 3 of caption"):
        pipe(["rain", "birds"], prompt=["a", "b", "c"], **SHORT)
    with pytest.raises(REFUSED, match="captions"):
        pipe(prompt="a dog", **SHORT)
