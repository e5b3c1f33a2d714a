"""Collators and the sampler that training on prepared rows uses."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets_scripts import CodesCollator, LatentsCollator, LengthBucketSampler, frame_lengths
from datasets_scripts.dataset.shards import RowFormat


def make_rows(lengths, seed=0, channels=1):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"row{i}",
            "codes": rng.integers(0, 50, (n * channels, 3)).astype(np.int16),
            "latents": rng.normal(2, 3, (n * channels, 5)).astype(np.float16),
            "num_channels": channels,
            "label": "ab"[i % 2] if i % 3 else None,
            "caption": None if i % 2 else f"clip {i}",
        }
        for i, n in enumerate(lengths)
    ]


def test_codes_are_padded_and_masked():
    rows = make_rows([4, 7, 1])
    batch = CodesCollator(labels=["b", "a"])(rows)
    assert batch["codes"].shape == (3, 7, 3)
    assert batch["codes"].dtype == torch.int64
    assert batch["mask"].sum(1).tolist() == [4, 7, 1]
    for row, codes, mask in zip(rows, batch["codes"], batch["mask"], strict=True):
        np.testing.assert_array_equal(codes[mask], row["codes"])
        assert not codes[~mask].any()
    assert batch["label"].tolist() == [-1, 0, 1]
    assert batch["label"].dtype == torch.int64
    assert batch["caption"] == ["clip 0", None, "clip 2"]


def test_a_batch_says_which_clips_end_in_it():
    rows = make_rows([4, 7, 5, 12])
    rows[2]["last"] = False
    assert CodesCollator()(rows)["ended"].tolist() == [True, True, False, True]
    collator = CodesCollator(crop_frames=5)
    cropped = []
    for epoch in range(40):
        collator.set_epoch(epoch)
        batch = collator(rows)
        assert batch["ended"][[0, 2]].tolist() == [True, False]
        # Crops of the last row end with it now and then, and then only.
        ends = np.array_equal(batch["codes"][3], rows[3]["codes"][-5:])
        assert bool(batch["ended"][3]) == ends
        cropped.append(ends)
    assert 0 < sum(cropped) < 40
    assert LatentsCollator([0.0] * 5, np.ones(5))(rows)["ended"].tolist()[2] is False


def test_latents_are_normalised_before_padding():
    rows = make_rows([4, 7])
    mean, std = torch.arange(5.0), torch.arange(1.0, 6.0)
    batch = LatentsCollator(mean, std)(rows)
    assert batch["latents"].dtype == torch.float32
    for row, latents, mask in zip(rows, batch["latents"], batch["mask"], strict=True):
        expected = (row["latents"].astype(np.float32) - mean.numpy()) / std.numpy()
        np.testing.assert_allclose(latents[mask], expected, rtol=1e-6)
        assert not latents[~mask].any()
    assert LatentsCollator([0.0] * 5, np.ones(5))(rows)["latents"].shape == (2, 7, 5)


def test_crops_are_a_function_of_seed_epoch_and_row():
    rows = make_rows([100, 90, 80])

    def starts(collator, rows):
        batch = collator(rows)
        assert batch["codes"].shape[1] == 10
        return [
            next(
                i
                for i in range(len(row["codes"]) - 9)
                if np.array_equal(row["codes"][i : i + 10], codes)
            )
            for row, codes in zip(rows, batch["codes"], strict=True)
        ]

    collator = CodesCollator(10, seed=1)
    first = starts(collator, rows)
    # Not of the batch, of the order, or of what was drawn before.
    assert starts(collator, rows[::-1]) == first[::-1]
    assert starts(CodesCollator(10, seed=1), rows[1:]) == first[1:]
    assert starts(CodesCollator(10, seed=2), rows) != first
    collator.set_epoch(1)
    second = starts(collator, rows)
    assert second != first
    collator.set_epoch(0)
    assert starts(collator, rows) == first
    assert len(set(starts(collator, make_rows([100] * 20)))) > 5
    # All places come up.
    seen = set()
    for epoch in range(200):
        collator.set_epoch(epoch)
        seen.add(starts(collator, [{"codes": rows[0]["codes"][:12]}])[0])
    assert seen == {0, 1, 2}


def test_rows_without_an_id_are_told_apart_by_their_content():
    a, b = ({"codes": row["codes"]} for row in make_rows([100, 100]))
    first = CodesCollator(10)([a, b])["codes"]
    again = CodesCollator(10)([b, a])["codes"]
    assert torch.equal(first, again.flip(0))


def test_one_channel_of_several_is_drawn():
    (row,) = make_rows([20], channels=3)
    row["codes"][:20], row["codes"][20:40], row["codes"][40:] = 0, 1, 2
    collator, seen = CodesCollator(15), set()
    for epoch in range(30):
        collator.set_epoch(epoch)
        codes = collator([row])["codes"]
        assert codes.shape == (1, 15, 3)
        assert len(codes.unique()) == 1
        seen.add(int(codes[0, 0, 0]))
    assert seen == {0, 1, 2}
    # Three channels in pairs are two groups.
    assert CodesCollator(joint_channels=2)([row])["codes"].shape == (1, 30, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_follow_the_epoch(workers):
    rows = make_rows([50] * 6)
    collator = CodesCollator(5)
    options = {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    loader = DataLoader(rows, batch_size=3, collate_fn=collator, num_workers=workers, **options)
    found = []
    for epoch in (0, 1, 0):
        collator.set_epoch(epoch)
        found.append(torch.cat([batch["codes"] for batch in loader]))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_bad_rows_are_refused():
    rows = make_rows([4])
    with pytest.raises(ValueError, match=r"'codes'.*'latents'.*--codes"):
        CodesCollator()([{**rows[0], "codes": None}])
    with pytest.raises(ValueError, match="'a'"):
        CodesCollator(labels=["b"])([{**rows[0], "label": "a"}])
    with pytest.raises(ValueError, match="joint_channels"):
        CodesCollator()([{**rows[0], "num_channels": 3}])
    with pytest.raises(ValueError, match=r"5 .* 4"):
        LatentsCollator([0.0] * 4, [1.0] * 4)(rows)
    with pytest.raises(ValueError, match="std"):
        LatentsCollator([0.0] * 5, [0.0] * 5)
    with pytest.raises(ValueError, match="crop_frames=0"):
        CodesCollator(0)
    with pytest.raises(ValueError, match="labels"):
        CodesCollator(labels=["a", "a"])
    with pytest.raises(ValueError, match="at least one row"):
        CodesCollator()([])


LENGTHS = np.random.default_rng(0).integers(1, 400, 3000)


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"max_frames": 3000}])
def test_every_row_comes_once_an_epoch(size):
    sampler = LengthBucketSampler(LENGTHS, seed=3, **size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(3000))
    for batch in batches:
        assert len(batch) <= size.get("batch_size", 3000)
        assert len(batch) * LENGTHS[batch].max() <= size.get("max_frames", 16 * 400)


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"max_frames": 3000}])
def test_batches_hold_similar_lengths_in_random_order(size):
    batches = list(LengthBucketSampler(LENGTHS, **size))
    padded = sum(len(batch) * LENGTHS[batch].max() for batch in batches)
    assert padded < 1.1 * LENGTHS.sum()
    # At random it would be far more.
    order = np.random.default_rng(0).permutation(3000).reshape(-1, 15)
    assert sum(15 * LENGTHS[batch].max() for batch in order) > 1.8 * LENGTHS.sum()
    means = [LENGTHS[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_epochs_differ_and_repeat():
    sampler = LengthBucketSampler(LENGTHS, batch_size=16, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    # Going on in the middle of an epoch.
    again = LengthBucketSampler(LENGTHS, batch_size=16, seed=3)
    again.set_epoch(1)
    assert list(islice(again, 70, None)) == second[70:]
    assert list(LengthBucketSampler(LENGTHS, batch_size=16, seed=4)) != first


@pytest.mark.parametrize("size", [{"batch_size": 16}, {"max_frames": 3000}])
def test_replicas_share_an_epoch(size):
    ranks = [list(LengthBucketSampler(LENGTHS, num_replicas=4, rank=r, **size)) for r in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert set(rows) == set(range(3000))
    # At most three batches come twice.
    assert len(rows) - 3000 <= 3 * max(len(batch) for batches in ranks for batch in batches)
    # In the same step all ranks have about as much to do.
    longest = np.array([[LENGTHS[batch].max() for batch in batches] for batches in ranks])
    assert np.median(np.ptp(longest, axis=0)) < 20


def test_impossible_samplers_are_refused():
    with pytest.raises(ValueError, match="batch_size or max_frames"):
        LengthBucketSampler([1])
    with pytest.raises(ValueError, match="batch_size or max_frames"):
        LengthBucketSampler([1], batch_size=1, max_frames=1)
    with pytest.raises(ValueError, match=r"Row 1 .*30 .*max_frames=20"):
        LengthBucketSampler([5, 30], max_frames=20)
    with pytest.raises(ValueError, match="rank=2"):
        LengthBucketSampler([1], batch_size=1, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="at least one row"):
        LengthBucketSampler([], batch_size=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        LengthBucketSampler([1], batch_size=0)


def test_frame_lengths_of_a_dataset():
    from datasets import Dataset

    features = RowFormat(3, "int16", 5).features()
    rows = make_rows([4, 7, 1]) + make_rows([6, 3], channels=3)
    fields = {"source_id": "", "start": 0, "gain": [1.0], "num_samples": 1, "metadata": None}
    rows = [{**fields, **row, "fingerprint": "", "id": str(i)} for i, row in enumerate(rows)]
    ds = Dataset.from_list(rows, features=features)
    assert frame_lengths(ds, "codes").tolist() == [4, 7, 1, 6, 3]
    assert frame_lengths(ds, "latents", crop_frames=5).tolist() == [4, 5, 1, 5, 3]
    assert frame_lengths(ds, "codes", joint_channels=2).tolist() == [4, 7, 1, 9, 4]
    # Of the rows that are left, in their order.
    assert frame_lengths(ds.select([4, 1]), "codes").tolist() == [3, 7]
    with pytest.raises(ValueError, match="'tokens'"):
        frame_lengths(ds, "tokens")
    none = RowFormat(None, "int16", 5).features()
    ds = Dataset.from_list([{**row, "codes": None} for row in rows], features=none)
    with pytest.raises(ValueError, match=r"'codes'.*--codes"):
        frame_lengths(ds, "codes")


def test_a_dataset_through_loader_sampler_and_collator():
    from datasets import Dataset

    rows = make_rows([30, 7, 12, 25, 9, 14])
    ds = Dataset.from_list([{**row, "codes": row["codes"].tolist()} for row in rows])
    sampler = LengthBucketSampler(frame_lengths(ds, "codes", crop_frames=10), batch_size=2)
    collator = CodesCollator(10)
    for data in (ds, ds.with_format("numpy"), ds.with_format("torch")):
        loader = DataLoader(data, batch_sampler=sampler, collate_fn=collator)
        batches = list(loader)
        assert sum(len(batch["codes"]) for batch in batches) == 6
        assert max(batch["codes"].shape[1] for batch in batches) == 10
