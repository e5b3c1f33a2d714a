import math

import pytest
import torch
from models import REFUSED, make_autoencoder, tone

from tokenizer import LatentTokenizer
from tokenizer.quantizers import build_quantizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.factorized import (
    FactorizedQuantizer,
    ProjectedScalarQuantizer,
    scalar_levels,
)
from tokenizer.quantizers.sources import TensorSource

DIM, COUNT = 12, 5


def latents(frames: int = 1500, seed: int = 0) -> torch.Tensor:
    """Correlated, off centre, some directions much stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(frames, DIM, generator=generator) * torch.logspace(0.5, -1, DIM)
    mixing = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9)))[0]
    return z @ mixing + 0.7


def make(kind: str) -> Quantizer:
    if kind == "factorized":
        return FactorizedQuantizer(DIM, COUNT, 32, codebook_dim=3)
    return ProjectedScalarQuantizer(DIM, COUNT, [4, 4, 2])


def fitted(kind: str) -> Quantizer:
    return make(kind).fit(TensorSource(latents()), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["factorized", "projected_fsq"])
def quantizer(request) -> Quantizer:
    return fitted(request.param)


def relative_error(quantizer: Quantizer, z: torch.Tensor, n: int) -> float:
    estimate = quantizer.decode(quantizer.encode(z, n))
    return float(((z - estimate).square().sum() / (z - z.mean(0)).square().sum()).sqrt())


def test_every_stage_brings_unseen_latents_nearer(quantizer):
    z = latents(seed=5)
    errors = [relative_error(quantizer, z, n) for n in range(1, COUNT + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0] < 0.5
    torch.testing.assert_close(quantizer.noise_levels, torch.tensor(errors), rtol=0.15, atol=0.0)
    assert quantizer.report.frames == 1500


def test_codes_are_those_of_a_loop_in_double_precision(quantizer):
    z = latents(200, seed=3)
    codes = quantizer.encode(z)
    residual, total = z.double(), torch.zeros_like(z).double()
    for k in range(COUNT):
        u = residual @ quantizer.in_weight[k].double().T + quantizer.in_bias[k].double()
        entries = quantizer.entries(k).double()
        # Angles for directions; distances after tanh for the grid.
        seen = u / u.norm(dim=1, keepdim=True) if quantizer.kind == "factorized" else u.tanh()
        expected = torch.cdist(seen, entries).argmin(1)
        assert torch.equal(codes[:, k], expected), k
        step = entries[expected] @ quantizer.out_weight[k].double().T + quantizer.out_bias[k]
        residual, total = residual - step, total + step
        decoded = quantizer.decode(codes[:, : k + 1])
        torch.testing.assert_close(decoded.double(), total, atol=1e-5, rtol=1e-5)


def test_codes_do_not_depend_on_company_or_on_how_many_are_asked_for(quantizer):
    z = latents(1100, seed=4)
    whole = quantizer.encode(z)
    assert whole.dtype == torch.int64
    assert whole.shape == (1100, COUNT)
    for start, stop in ((0, 1), (3, 700), (1099, 1100)):
        assert torch.equal(quantizer.encode(z[start:stop]), whole[start:stop])
    assert torch.equal(quantizer.encode(z, 2), whole[:, :2])
    assert quantizer.encode(z[:0]).shape == (0, COUNT)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z), whole)
        assert torch.equal(quantizer.decode(whole), quantizer.decode(whole))
        assert quantizer.decode(whole).dtype == torch.float32


@pytest.mark.parametrize("kind", ["factorized", "projected_fsq"])
def test_the_same_seed_gives_the_same_fit_and_refitting_forgets(kind):
    once, again = fitted(kind), make(kind)
    again.fit(TensorSource(latents(seed=8) * 5), generator=torch.Generator().manual_seed(2))
    again.fit(TensorSource(latents()), generator=torch.Generator().manual_seed(1))
    for name, value in once.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_configuration_and_state_come_back(quantizer):
    config = {"kind": quantizer.kind, **quantizer.to_config()}
    again = build_quantizer(config)
    again.load_state_dict(quantizer.state_dict())
    z = latents(50, seed=6)
    assert torch.equal(again.encode(z), quantizer.encode(z))
    assert again.codebook_sizes == quantizer.codebook_sizes == (32,) * COUNT


def test_a_tokenizer_keeps_it(quantizer, tmp_path):
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    z = tokenizer.encode(torch.from_numpy(tone(3.0))[None]).latents[0].T
    mine = type(quantizer)(8, 3, *([16, 4] if quantizer.kind == "factorized" else [[4, 4]]))
    mine.fit(TensorSource(z.clone()), generator=torch.Generator().manual_seed(0))
    tokenizer.set_quantizer(mine).save_pretrained(tmp_path)
    row = tokenizer.encode_codes(tone(0.5), sampling_rate=8000)
    loaded = LatentTokenizer.from_pretrained(tmp_path)
    other = loaded.encode_codes(tone(0.5), sampling_rate=8000)
    assert (row["codes"] == other["codes"]).all()
    assert (loaded.decode_codes(row) == tokenizer.decode_codes(row)).all()


def test_constant_latents_are_fitted_too(quantizer):
    z = torch.full((40, DIM), 2.0)
    again = make(quantizer.kind).fit(TensorSource(z), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.decode(again.encode(z)), z, atol=1e-3, rtol=0.0)


def test_levels_multiply_to_the_codebook_size():
    assert scalar_levels(1024) == (4, 4, 4, 4, 4)
    for bits in range(1, 17):
        levels = scalar_levels(1 << bits)
        assert math.prod(levels) == 1 << bits
        assert set(levels) <= {2, 4, 8}
    for wrong in (1, 0, 1000):
        with pytest.raises(ValueError, match="power of two"):
            scalar_levels(wrong)


def test_refusals(quantizer):
    with pytest.raises(RuntimeError, match="not fitted"):
        make(quantizer.kind).encode(latents(3))
    with pytest.raises(ValueError, match=r"\b13\b.*\b12\b"):
        FactorizedQuantizer(DIM, COUNT, 32, codebook_dim=13)
    with pytest.raises(ValueError, match="at least 2"):
        ProjectedScalarQuantizer(DIM, COUNT, [4, 1])
    with pytest.raises(ValueError, match=r"\b31\b"):
        quantizer.decode(torch.full((2, 1), 32))
    with pytest.raises(REFUSED):
        quantizer.encode(latents(3)[:, :4])
