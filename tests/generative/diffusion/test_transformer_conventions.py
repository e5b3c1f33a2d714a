"""The conventions of models of `diffusers`, whose own tests are in no package of it."""

import pytest
import torch
from diffusers.utils import BaseOutput
from models import DIM

from generative.diffusion.transformer import DiffusionTransformer

SIZES = {"latent_dim": DIM, "width": 32, "depth": 2, "heads": 2, "condition_width": 16}
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = DiffusionTransformer(**SIZES)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(1)
    masks = {"condition_mask": torch.tensor([[True, True], [True, False]]),
             "frame_mask": torch.arange(7) < torch.tensor([[7], [4]])}  # fmt: skip
    time = torch.tensor([900.0, 100.0])
    latents, condition = torch.randn(2, 7, DIM), torch.randn(2, 2, 16)
    return {"latents": latents, "timestep": time, "condition": condition} | masks


def cast(inputs, dtype):
    return inputs | {name: inputs[name].to(dtype) for name in ("latents", "condition")}


def test_outputs_by_name_and_as_a_tuple(network, inputs):
    output = network(**inputs)
    assert isinstance(output, BaseOutput)
    (velocity,) = network(**inputs, return_dict=False)
    assert torch.equal(velocity, output.sample)
    assert torch.equal(velocity, output.to_tuple()[0])
    assert velocity.shape == inputs["latents"].shape


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "20KB"}])
def test_saved_and_loaded_it_is_the_same(network, inputs, tmp_path, options):
    network.save_pretrained(tmp_path, **options)
    variant = {"variant": options["variant"]} if "variant" in options else {}
    again, info = DiffusionTransformer.from_pretrained(
        tmp_path, output_loading_info=True, **variant
    )
    assert not any(info.values())
    assert not again.training
    assert dict(again.config).items() >= SIZES.items()
    assert torch.equal(again(**inputs).sample, network(**inputs).sample)
    made = DiffusionTransformer.from_config(again.config)
    assert made.num_parameters() == network.num_parameters()


@pytest.mark.parametrize("dtype", HALVES)
def test_in_another_precision(network, inputs, tmp_path, dtype):
    network.save_pretrained(tmp_path)
    half = DiffusionTransformer.from_pretrained(tmp_path, torch_dtype=dtype)
    assert half.dtype == dtype
    assert {p.dtype for p in half.parameters()} == {dtype}
    whole = network(**inputs).sample
    velocity = half(**cast(inputs, dtype)).sample
    assert velocity.dtype == dtype
    real = inputs["frame_mask"]
    error = (velocity.float() - whole)[real].square().mean()
    assert error < 1e-3 * whole[real].square().mean()
    # Of latents in float32, as schedulers have them.
    assert half(**inputs).sample.dtype == torch.float32


def test_nothing_is_made_on_another_device_than_that_of_its_inputs(network, inputs):
    assert network.device == torch.device("cpu")
    whole = network(**inputs).sample
    with torch.device("meta"):  # Where whatever says no device would be now.
        assert torch.equal(network(**inputs).sample, whole)
    if torch.cuda.is_available():
        there = DiffusionTransformer.from_config(network.config).to("cuda")
        there.load_state_dict(network.state_dict())
        found = there(**{name: value.cuda() for name, value in inputs.items()}).sample
        torch.testing.assert_close(found.cpu(), whole, rtol=1e-3, atol=1e-3)


def test_gradients_reach_all_that_conditions_and_frames_pass(network, inputs):
    network.zero_grad()
    network(**inputs).sample.square().mean().backward()
    assert all(bool(p.grad.any()) for p in network.parameters())
