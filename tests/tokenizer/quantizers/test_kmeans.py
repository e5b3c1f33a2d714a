import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from jaxtyping import TypeCheckError

from tokenizer.quantizers import kmeans as kmeans_module
from tokenizer.quantizers.kmeans import argmax_rows, block_rows, kmeans, largest_in_rows, nearest
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import MemmapSource, TensorSource, sample_frames

# With run-time type checks on, they are the first to refuse a wrong shape or type.
REFUSED = (ValueError, TypeCheckError)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _clustered(rows, dim=16, clusters=40, seed=0):
    g = _generator(seed)
    centres = 3 * torch.randn(clusters, dim, generator=g)
    label = torch.randint(clusters, (rows,), generator=g)
    return centres[label] + torch.randn(rows, dim, generator=g)


def _distortion(x, centroids):
    d = torch.cdist(x.double(), centroids.double())
    return float(d.min(1).values.square().mean())


# Nearest entries


def test_nearest_equals_faiss():
    import faiss

    x, book = _clustered(3000), _clustered(257, seed=1)
    index = faiss.IndexFlatL2(16)
    index.add(book.numpy())
    distances, expected = index.search(x.numpy(), 2)
    clear = torch.from_numpy(distances[:, 1] - distances[:, 0] > 1e-3)
    assert clear.float().mean() > 0.99
    codes = nearest(x, book)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[clear], torch.from_numpy(expected[:, 0])[clear])


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(0, 70),
    dim=st.integers(1, 5),
    size=st.sampled_from([1, 2, 3, 31, 33, 1000]),
    seed=st.integers(0, 99),
)
def test_nearest_equals_brute_force(rows, dim, size, seed):
    g = _generator(seed)
    # Small integers: float32 is exact, so ties are true ties and the first entry wins.
    x = torch.randint(-4, 5, (rows, dim), generator=g).float()
    book = torch.randint(-4, 5, (size, dim), generator=g).float()
    distances = (x[:, None] - book).square().sum(2)
    expected = distances.numpy().argmin(1) if rows else np.zeros(0, np.int64)
    assert nearest(x, book).tolist() == expected.tolist()


def test_blocks_are_bounded_powers_of_two():
    for size in (1, 2, 3, 1000, 1024, 4096, 65_536, 10**7):
        rows = block_rows(size)
        assert 16 <= rows <= 1024
        assert rows & (rows - 1) == 0
    assert block_rows(1024) * 1024 * 4 == 2**20


def test_argmax_and_largest():
    scores = torch.tensor([[0.0, 3.0, 3.0, 1.0], [-torch.inf, -2.0, -5.0, -1.0]])
    assert argmax_rows(scores).tolist() == [1, 3]
    assert largest_in_rows(scores.clone(), 3).tolist() == [[1, 2, 3], [3, 1, 2]]
    x = torch.randn(50, 99, generator=_generator())
    assert torch.equal(largest_in_rows(x.clone(), 7), x.topk(7).indices)


# k-means


@pytest.mark.parametrize("k", [7, 40, 256])
def test_distortion_is_that_of_faiss(k):
    import faiss

    x = _clustered(12_000)
    best = []
    for seed in range(3):
        reference = faiss.Kmeans(16, k, niter=25, seed=seed, max_points_per_centroid=10**6)
        reference.train(x.numpy())
        best.append(_distortion(x, torch.from_numpy(reference.centroids)))
    ours = [_distortion(x, kmeans(x, k, generator=_generator(s))) for s in range(3)]
    assert np.mean(ours) <= 1.02 * np.mean(best)


def test_more_iterations_do_not_hurt_and_the_loop_stops_by_itself():
    x = _clustered(2000)
    results = [
        _distortion(x, kmeans(x, 20, generator=_generator(), iterations=i, tolerance=0.0))
        for i in (1, 2, 4, 8, 16)
    ]
    assert results == sorted(results, reverse=True)
    many = [
        kmeans(x, 20, generator=_generator(), iterations=i, tolerance=0.01) for i in (50, 10**9)
    ]
    assert torch.equal(*many)


def test_seeds():
    x = _clustered(2000)
    a, b, c = (kmeans(x, 20, generator=_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_centroid_is_the_mean_of_its_points():
    x = _clustered(3000)
    centroids = kmeans(x, 8, generator=_generator(), iterations=200, tolerance=0.0)
    codes = nearest(x, centroids)
    means = torch.stack([x[codes == j].mean(0) for j in range(8)])
    torch.testing.assert_close(means, centroids, atol=1e-2, rtol=0)


@settings(deadline=None, max_examples=30)
@given(
    distinct=st.integers(1, 12),
    copies=st.integers(1, 9),
    k=st.integers(1, 30),
    dim=st.integers(1, 4),
)
def test_duplicated_and_few_points(distinct, copies, k, dim):
    points = torch.randn(distinct, dim, generator=_generator()) * 10
    x = points.repeat(copies, 1)
    centroids = kmeans(x, k, generator=_generator())
    assert centroids.shape == (k, dim)
    assert centroids.isfinite().all()
    if len(x) <= k:
        assert _distortion(x, centroids) < 1e-6
    spread = float((x - x.mean(0)).square().sum(1).mean())
    assert _distortion(x, centroids) <= spread * (1 + 1e-4) + 1e-5


def test_empty_clusters_find_the_far_away_points():
    # Nearly all points are one point, and so are all centroids at first.
    x = torch.zeros(5000, 3)
    x[:6] = 10 * torch.randn(6, 3, generator=_generator())
    assert _distortion(x, kmeans(x, 10, generator=_generator())) < 1e-6


def test_a_distant_mean_costs_no_precision():
    x = _clustered(3000)
    near = _distortion(x, kmeans(x, 20, generator=_generator()))
    far = _distortion(x + 1000.0, kmeans(x + 1000.0, 20, generator=_generator()))
    assert far == pytest.approx(near, rel=0.02)


def test_half_points_and_autocast_are_computed_in_float32():
    x = _clustered(500)
    plain = kmeans(x.half().float(), 9, generator=_generator())
    with torch.autocast("cpu", torch.bfloat16):
        cast = kmeans(x.half(), 9, generator=_generator())
        codes = nearest(x.half(), cast)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    assert torch.equal(codes, nearest(x.half().float(), plain))


def test_errors_name_the_fault():
    x = _clustered(10)
    with pytest.raises(ValueError, match="k is 0"):
        kmeans(x, 0, generator=_generator())
    with pytest.raises(ValueError, match="iterations 0"):
        kmeans(x, 2, generator=_generator(), iterations=0)
    with pytest.raises(ValueError, match="at least one point"):
        kmeans(x[:0], 2, generator=_generator())
    with pytest.raises(ValueError, match="finite"):
        kmeans(x / 0, 2, generator=_generator())


# Sources


def _save(path, array):
    np.save(path, array)
    return MemmapSource(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sources_agree(tmp_path, dtype):
    array = np.random.default_rng(0).normal(size=(103, 5)).astype(dtype)
    disk, memory = _save(tmp_path / "z.npy", array), TensorSource(torch.from_numpy(array))
    expected = torch.from_numpy(array.astype(np.float32))
    for source in (disk, memory):
        assert (len(source), source.dim) == (103, 5)
        pieces = list(source.batches(25))
        assert [len(p) for p in pieces] == [25, 25, 25, 25, 3]
        assert all(p.dtype == torch.float32 for p in pieces)
        assert torch.equal(torch.cat(pieces), expected)
        assert torch.equal(source.rows(20, 30), expected[20:30])
    draws = [sample_frames(s, 30, _generator(3)) for s in (disk, memory)]
    assert torch.equal(*draws)


@settings(deadline=None, max_examples=40)
@given(total=st.integers(0, 60), n=st.integers(1, 70), seed=st.integers(0, 9))
def test_samples_are_distinct_frames_in_order(total, n, seed):
    source = TensorSource(torch.arange(total)[:, None].float())
    drawn = sample_frames(source, n, _generator(seed))[:, 0].tolist()
    assert len(drawn) == min(n, total)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(total))


@pytest.mark.parametrize("n", [3, 8])
def test_samples_are_uniform(n):
    source = TensorSource(torch.arange(10)[:, None].float())
    g = _generator()
    hits = torch.zeros(10)
    for _ in range(2000):
        hits[sample_frames(source, n, g)[:, 0].long()] += 1
    # Three to four standard deviations of a binomial count.
    torch.testing.assert_close(hits, torch.full((10,), 200.0 * n), atol=80, rtol=0)


def test_a_sample_is_a_copy():
    frames = torch.zeros(4, 2)
    sample_frames(TensorSource(frames), 4, _generator()).add_(1)
    assert torch.equal(frames, torch.zeros(4, 2))


class _Counting:
    """A source that counts its passes, and lies about its length if told to."""

    dim = 2

    def __init__(self, announced, frames):
        self.announced, self.frames, self.passes = announced, frames, 0

    def __len__(self):
        return self.announced

    def batches(self, batch_size):
        self.passes += 1
        yield from torch.zeros(self.frames, 2).split(batch_size)


def test_sampling_takes_one_pass_over_an_honest_source():
    source = _Counting(100_000, 100_000)
    assert sample_frames(source, 10, _generator()).shape == (10, 2)
    assert source.passes == 1
    with pytest.raises(ValueError, match=r"\b90\b.*\b100\b"):
        sample_frames(_Counting(90, 100), 10, _generator())
    with pytest.raises(ValueError, match=r"\b110\b.*\b100\b"):
        sample_frames(_Counting(110, 100), 10, _generator())


def test_source_errors_name_the_fault(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.npy"):
        MemmapSource(tmp_path / "missing.npy")
    text = tmp_path / "text.npy"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"not a \.npy file"):
        MemmapSource(text)
    np.savez(tmp_path / "many.npz", a=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="archive"):
        MemmapSource(tmp_path / "many.npz")
    for bad in (np.zeros((3, 2)), np.zeros(3, np.float32), np.zeros((3, 2), np.int16)):
        with pytest.raises(ValueError, match="float32 or float16"):
            _save(tmp_path / "bad.npy", bad)
    with pytest.raises(REFUSED):
        TensorSource(torch.zeros(3))
    with pytest.raises(REFUSED):
        TensorSource(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(TensorSource(torch.zeros(3, 2)).batches(0))
    with pytest.raises(ValueError, match="Cannot sample 0"):
        sample_frames(TensorSource(torch.zeros(3, 2)), 0, _generator())


# Many points, several processes, GPUs


def test_few_of_many_points_are_enough_at_first():
    import faiss

    x = _clustered(140_000)  # most passes see half of them
    reference = faiss.Kmeans(16, 16, niter=25, seed=0)
    reference.train(x.numpy())
    best = _distortion(x, torch.from_numpy(reference.centroids))
    ours = [_distortion(x, kmeans(x, 16, generator=_generator(seed))) for seed in range(3)]
    assert min(ours) <= 1.01 * best


_SHARED = """
import sys, numpy, torch, torch.distributed as dist
from tokenizer.quantizers import kmeans as module
from tokenizer.quantizers.kmeans import kmeans
module._FEWEST = 0
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
x = torch.from_numpy(numpy.load(sys.argv[4]))
x = x[:700] if rank == 0 else x[700:]
g = torch.Generator().manual_seed(3)
found = kmeans(x, 20, generator=g, iterations=6, group=dist.group.WORLD)
numpy.save(out + str(rank) + ".npy", found.numpy())
q = ResidualVectorQuantizer(16, 2, 20)
q.fit(TensorSource(x), generator=torch.Generator().manual_seed(3), group=dist.group.WORLD)
numpy.save(out + str(rank) + "-levels.npy", q.noise_levels.numpy())
assert int(q.code_counts[0].sum()) == 3000
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(kmeans_module, "_FEWEST", 0)
    x = _clustered(3000)
    x[1000:1400] = x[1000]  # duplicates: centroids that lose all their points are drawn anew
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [str(tmp_path / "store"), str(tmp_path / "out"), str(tmp_path / "x.npy")]
    running = [
        subprocess.Popen([sys.executable, "-c", _SHARED, str(rank), *arguments])
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    alone = kmeans(x, 20, generator=_generator(3), iterations=6)
    first, second = (torch.from_numpy(np.load(tmp_path / f"out{r}.npy")) for r in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-4)
    levels = [np.load(tmp_path / f"out{r}-levels.npy") for r in range(2)]
    assert np.array_equal(*levels)
    single = ResidualVectorQuantizer(16, 2, 20).fit(TensorSource(x), generator=_generator(3))
    np.testing.assert_allclose(levels[0], single.noise_levels.numpy(), rtol=0.1)
    with pytest.raises(REFUSED):
        ResidualVectorQuantizer(16, 2, 20, "channel").fit(
            TensorSource(x),
            generator=_generator(),
            group=object(),  # pyright: ignore[reportArgumentType]
        )
