import faiss
import numpy as np
import pytest
import torch

from tokenizer.quantizers import OptimizedProductQuantizer, ProductQuantizer, TensorSource
from tokenizer.quantizers.faiss_bridge import draw_seed
from tokenizer.quantizers.sources import sample_frames

DIM, K, SIZE, BITS = 12, 4, 16, 4


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _latents(rows=2000, dim=DIM, seed=0):
    g = _generator(seed)
    mixing = torch.randn(dim, dim, generator=_generator(9)) * torch.logspace(0, -1, dim)
    return torch.randn(rows, dim, generator=g) @ mixing + 2


def _fit(cls, x, count=K, **options):
    quantizer = cls(x.shape[1], count, SIZE, **options)
    return quantizer.fit(TensorSource(x), generator=_generator())


def _reference(y, count):
    """faiss's own quantizer, trained as ours is."""
    g = _generator()
    sample_frames(TensorSource(y), len(y), g)
    reference = faiss.ProductQuantizer(y.shape[1], count, BITS)
    reference.cp.seed = draw_seed(g)
    reference.cp.min_points_per_centroid = 1
    reference.train(y.numpy())
    return reference


def _mse(x, estimate):
    return float((x - torch.as_tensor(estimate)).square().sum(1).mean())


def test_codes_latents_and_distortion_are_those_of_faiss():
    x, test = _latents(), _latents(seed=1)
    ours = _fit(ProductQuantizer, x)
    mean = x.mean(0)
    reference = _reference(x - mean, K)
    packed = reference.compute_codes((test - mean).numpy())
    codes = ours.encode(test)
    # Ours are in order of what they are worth: find whose codebook is whose.
    theirs = faiss.vector_to_array(reference.centroids).reshape(K, SIZE, -1)
    order = [
        next(j for j in range(K) if np.array_equal(theirs[j], book.numpy()))
        for book in ours.codebooks
    ]
    expected = torch.from_numpy(faiss.unpack_bitstrings(packed, K, BITS).astype("int64"))[:, order]
    assert (codes == expected).float().mean() > 0.999
    z = torch.from_numpy(reference.decode(packed)) + mean
    same = (codes == expected).all(1)
    torch.testing.assert_close(ours.decode(expected)[same], z[same], rtol=1e-5, atol=1e-5)
    assert _mse(test, ours.decode(codes)) == pytest.approx(_mse(test, z), rel=1e-5)


def test_a_prefix_is_its_groups_and_the_mean_elsewhere():
    x = _latents()
    quantizer = _fit(ProductQuantizer, x)
    codes = quantizer.encode(x)
    for n in range(1, K + 1):
        z = quantizer.decode(codes[:, :n])
        shown = (z - x.mean(0)).abs().amax(0) > 1e-4
        assert int(shown.sum()) == n * DIM // K
    # In order of error removed.
    errors = [_mse(x, quantizer.decode(codes[:, :n])) for n in range(1, K + 1)]
    steps = -np.diff([_mse(x, x.mean(0).expand_as(x)), *errors])
    assert np.all(steps[:-1] >= steps[1:])


@pytest.mark.parametrize("cls", [ProductQuantizer, OptimizedProductQuantizer])
@pytest.mark.parametrize("count", [1, 5, 7, 12])
def test_any_number_of_codebooks(cls, count):
    x = _latents(600)
    quantizer = _fit(cls, x, count)
    identity = quantizer.rotation @ quantizer.rotation.T
    torch.testing.assert_close(identity, torch.eye(DIM), rtol=0, atol=1e-5)
    assert quantizer.encode(x).shape == (600, count)
    expected = quantizer.decode(quantizer.encode(x))
    # A group that faiss filled up with zeros gives nothing to it.
    assert _mse(x, expected) < _mse(x, x.mean(0).expand_as(x))


def test_a_learned_rotation_lowers_held_out_error():
    x, test = _latents(), _latents(seed=1)
    errors = [
        _mse(test, q.decode(q.encode(test)))
        for q in (_fit(ProductQuantizer, x), _fit(OptimizedProductQuantizer, x))
    ]
    assert errors[1] < 0.9 * errors[0]


def test_the_rotation_is_faiss_own():
    x = _latents()
    mean = x.mean(0)
    ours = _fit(OptimizedProductQuantizer, x)
    matrix = faiss.OPQMatrix(DIM, K, DIM)
    template = faiss.ProductQuantizer(DIM, K, BITS)
    template.cp.min_points_per_centroid = 1
    matrix.pq = template
    matrix.train((x - mean).numpy())
    y = torch.from_numpy(matrix.apply((x - mean).numpy()))
    reference = _reference(y, K)
    z = matrix.reverse_transform(reference.decode(reference.compute_codes(y.numpy())))
    assert _mse(x - mean, z) == pytest.approx(_mse(x, ours.decode(ours.encode(x))), rel=1e-4)


def test_more_codebooks_than_channels_are_refused():
    with pytest.raises(ValueError, match=r"\b13\b.*\b12\b"):
        ProductQuantizer(DIM, 13, SIZE)
