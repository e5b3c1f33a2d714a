"""The view of a tokenizer that `diffusers` takes for an autoencoder of its own."""

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from models import CODEBOOKS, DIM, HOP, RATE, tone
from safetensors.torch import load_file, save_file

from tokenizer import DiffusersView


class Pipeline(DiffusionPipeline):
    """Holds an autoencoder, as others do."""

    def __init__(self, vae, scheduler):
        super().__init__()
        self.register_modules(vae=vae, scheduler=scheduler)


def wave(seconds=1.0):
    return torch.from_numpy(tone(seconds))[None]


@pytest.fixture
def view(tokenizer):
    return DiffusersView(tokenizer)


@pytest.mark.parametrize("seconds", [1.0, 0.501])
def test_the_latents_and_audio_are_the_tokenizers(tokenizer, seconds):
    x = wave(seconds)
    view, raw = DiffusersView(tokenizer), DiffusersView(tokenizer, normalized=False)
    latents = tokenizer.encode(x).latents
    wanted = tokenizer.decode(latents, decoder="continuous")
    inside = wanted.shape[-1] - HOP  # The last hop fades out.
    for one, given in ((view, tokenizer.normalize_latents(latents)), (raw, latents)):
        z = one.encode(x).latent_dist.sample()
        assert torch.equal(z, given[..., : z.shape[-1]])
        audio = one.decode(z).sample
        torch.testing.assert_close(audio[..., :inside], wanted[..., :inside], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 10 * HOP, 10 * HOP + 7])
def test_frames_and_samples_are_exact(view, samples):
    x = wave(2.0)[..., :samples]
    z = view.encode(x).latent_dist.mode()
    assert z.shape == (1, DIM, -(-samples // HOP))
    assert view.decode(z).sample.shape == (1, 1, z.shape[-1] * HOP)
    assert view(x).sample.shape[-1] == z.shape[-1] * HOP


def test_it_is_called_as_autoencoders_of_diffusers_are(view):
    x = wave()
    (distribution,) = view.encode(x, return_dict=False)
    z = distribution.sample(torch.Generator().manual_seed(0))
    assert torch.equal(z, view.encode(x)["latent_dist"].mode())
    assert not bool(distribution.kl().any())
    (audio,) = view.decode(z, return_dict=False, generator=torch.Generator())
    assert torch.equal(audio, view.decode(z)[0])
    numbers = (view.config.sampling_rate, view.config.audio_channels, view.config.hop_length)
    assert numbers == (RATE, 1, HOP)
    for switch in ("slicing", "tiling"):
        getattr(view, f"enable_{switch}")()
        assert torch.equal(view(x).sample, audio)
        getattr(view, f"disable_{switch}")()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        view.enable_gradient_checkpointing()


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.float16}, {"low_cpu_mem_usage": False}, {"device_map": "auto"}]
)
def test_loaded_as_saved(view, tmp_path, options):
    view.save_pretrained(tmp_path, max_shard_size="20KB")
    again = DiffusersView.from_pretrained(tmp_path, **options)
    assert again.config["tokenizer"] == view.config["tokenizer"]
    assert again.model.num_codebooks == CODEBOOKS
    assert torch.equal(again(wave()).sample, view(wave()).sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pipelines_hold_save_and_load_it(view, tmp_path, dtype):
    pipeline = Pipeline(view, FlowMatchEulerDiscreteScheduler())
    pipeline.save_pretrained(tmp_path)
    again = Pipeline.from_pretrained(tmp_path).to(dtype)
    assert isinstance(again.vae, DiffusersView)
    assert torch.equal(again.vae(wave()).sample, view(wave()).sample)


def test_damaged_views_are_refused(view, tmp_path):
    with pytest.raises(FileNotFoundError):
        DiffusersView.from_pretrained(tmp_path)
    view.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["model.latents_mean"] += 1
    save_file(weights, file)
    with pytest.raises(ValueError, match="checksum"):
        DiffusersView.from_pretrained(tmp_path)
    del weights["model.latents_mean"]
    save_file(weights, file)
    with pytest.raises(ValueError, match="latents_mean"):
        DiffusersView.from_pretrained(tmp_path)
