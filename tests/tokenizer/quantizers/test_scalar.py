import itertools
import math
import warnings

import pytest
import torch
from models import REFUSED

from tokenizer.quantizers import FiniteScalarQuantizer, ResidualFiniteScalarQuantizer, TensorSource
from tokenizer.quantizers.scalar import (
    best_scales,
    level_values,
    nearest_levels,
    principal_directions,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vector_quantize_pytorch import FSQ, ResidualFSQ

LEVELS = (8, 5, 2)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _latents(rows=2000, dim=6, seed=0):
    g = _generator(seed)
    mixing = torch.randn(dim, dim, generator=_generator(9)) * torch.logspace(0, -1, dim)
    return torch.randn(rows, dim, generator=g) @ mixing + 2


def _mse(x, estimate):
    return float((x - estimate).square().sum(1).mean())


def _plain(quantizer, scales):
    """Makes projections that pick channels, so that codes can be compared with the library's."""
    count, dim, width = quantizer.projections.shape
    eye = torch.eye(dim)
    for k in range(count):
        first = 0 if dim == width else k * width
        quantizer.projections[k].copy_(eye[:, first : first + width])
    quantizer.mean.zero_()
    quantizer.scales.copy_(scales)
    quantizer.fitted.fill_(True)
    return quantizer


def test_fsq_equals_the_library():
    ours = _plain(FiniteScalarQuantizer(6, 2, LEVELS), torch.ones(2, 3))
    library = FSQ(
        list(LEVELS), dim=6, num_codebooks=2, preserve_symmetry=True, bound_hard_clamp=True
    )
    x = 1.2 * torch.randn(500, 6, generator=_generator())
    values, codes = library(x[None])
    assert torch.equal(ours.encode(x), codes[0].long())
    torch.testing.assert_close(ours.decode(ours.encode(x)), values[0], rtol=0, atol=1e-6)


def test_residual_fsq_equals_the_library():
    levels = (5, 4, 3)
    scales = torch.stack([torch.tensor(levels).float() ** -k for k in range(4)])
    ours = _plain(ResidualFiniteScalarQuantizer(3, 4, levels), scales)
    library = ResidualFSQ(levels=list(levels), num_quantizers=4, dim=3).eval()
    x = torch.randn(500, 3, generator=_generator())
    values, codes = library(x[None])
    # The library squeezes its input softly into the range before it quantizes.
    limit = 1 + 1 / (torch.tensor(levels) - 1)
    squeezed = (x / limit).tanh() * limit
    same = (ours.encode(squeezed) == codes[0].long()).all(1)
    assert same.float().mean() > 0.99
    z = ours.decode(ours.encode(squeezed))
    torch.testing.assert_close(z[same], values[0][same], rtol=0, atol=1e-5)


def test_every_code_is_a_combination_of_levels():
    quantizer = _plain(FiniteScalarQuantizer(3, 1, LEVELS), torch.ones(1, 3))
    z = quantizer.decode(torch.arange(80)[:, None])
    grids = [torch.linspace(-1, 1, count).tolist() for count in reversed(LEVELS)]
    expected = torch.tensor([point[::-1] for point in itertools.product(*grids)])
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-6)
    assert torch.equal(quantizer.encode(z)[:, 0], torch.arange(80))
    # The nearest of all, also outside.
    x = 2 * torch.randn(300, 3, generator=_generator())
    assert torch.equal(quantizer.encode(x)[:, 0], torch.cdist(x, expected).argmin(1))


@pytest.mark.parametrize(("levels", "expected"), [(2, 0.363), (4, 0.1188), (8, 0.0374)])
def test_scales_are_the_best_for_gaussians(levels, expected):
    # Max (1960): the least error of a uniform quantizer of a Gaussian.
    u = 3 * torch.randn(200_000, 2, generator=_generator())
    scales = best_scales(u, (levels, levels))
    rounded = level_values(nearest_levels(u / scales, (levels,) * 2), (levels,) * 2) * scales
    assert float((u - rounded).square().mean()) / 9 == pytest.approx(expected, rel=0.02)


def test_directions_are_the_principal_components():
    x = _latents()
    x = x - x.mean(0)
    found = principal_directions(x, 3)
    _, _, rows = torch.linalg.svd(x.double(), full_matrices=False)
    alignment = (found.double() * rows[:3].T).sum(0).abs()
    torch.testing.assert_close(alignment, torch.ones(3).double(), rtol=0, atol=1e-5)


def test_residual_fsq_shares_bits_better_than_fsq():
    x, test = _latents(dim=12), _latents(dim=12, seed=1)
    errors = []
    for cls in (FiniteScalarQuantizer, ResidualFiniteScalarQuantizer):
        quantizer = cls(12, 4, (4, 4, 4))
        quantizer.fit(TensorSource(x), generator=_generator())
        errors.append(_mse(test, quantizer.decode(quantizer.encode(test))))
        assert quantizer.codebook_sizes == (64,) * 4
    assert errors[1] < 0.8 * errors[0]


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 1\)"):
        FiniteScalarQuantizer(6, 1, (4, 1))
    with pytest.raises(ValueError, match="'rfsq'"):
        FiniteScalarQuantizer(6, 3, (4, 4, 4))
    with pytest.raises(ValueError, match="at most one for each"):
        ResidualFiniteScalarQuantizer(2, 3, (4, 4, 4))
    with pytest.raises(REFUSED):
        FiniteScalarQuantizer(6, 1, ())
    with pytest.raises(ValueError, match=str(8**6)):
        ResidualFiniteScalarQuantizer(6, 1, (8,) * 6)
    assert math.prod(FiniteScalarQuantizer(8, 1).levels) == 1024
