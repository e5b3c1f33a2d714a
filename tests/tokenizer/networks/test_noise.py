"""Noise as a function of its place."""

import torch

from tokenizer.networks.noise import PRIME, bin_noise, frame_states


def noise(first: int, count: int, seed: int = 0, bins: int = 96) -> torch.Tensor:
    return bin_noise(frame_states(torch.arange(first, first + count), seed), bins)


def test_a_part_is_that_of_the_whole():
    whole = noise(0, 700)
    assert torch.equal(noise(123, 77), whole[123:200])
    assert torch.equal(noise(0, 700, bins=7)[0], noise(0, 1, bins=7)[0])
    assert torch.equal(noise(PRIME, 5), noise(0, 5))
    batch = frame_states(torch.stack([torch.arange(9), torch.arange(40, 49)]))
    assert torch.equal(bin_noise(batch, 96)[1], whole[40:49])


def test_it_is_white_uniform_and_another_for_another_seed():
    x = noise(0, 4000)
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    assert float(x.abs().max()) <= 3**0.5
    # Neither frames nor bins resemble each other, at any distance.
    for rows in (x[:500], x.T):
        unit = rows / rows.norm(dim=1, keepdim=True)
        similarity = (unit @ unit.T).fill_diagonal_(0) * rows.shape[1] ** 0.5
        assert float(similarity.abs().max()) < 6, "deviations of chance"
        assert abs(float(similarity.square().mean()) - 1) < 0.1
    assert abs(float((x * noise(0, 4000, seed=1)).mean())) < 0.01
