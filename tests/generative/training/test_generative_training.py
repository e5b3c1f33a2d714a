import shutil
from dataclasses import replace
from itertools import islice

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from models import CODEBOOKS, REFUSED, make_tokenizer
from prepared_data import LABELS, make_rows, write_prepared
from safetensors.torch import load_file

from generative.runs.batches import make_collator, training_batches, validation_batches
from generative.runs.families import check_source, train_diffusion, train_language_model
from generative.runs.generation import make_request
from generative.runs.loading import load_run
from generative.runs.prepared_data import choose_splits, hold_out, load_prepared
from generative.training.training_config import TrainingConfig


@pytest.fixture(autouse=True)
def _new_process():
    # accelerate keeps its settings for as long as a process lives.
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("generative")
    tokenizer.save_pretrained(root / "tokenizer")
    write_prepared(root / "data", tokenizer)
    return root


# Data


def test_only_the_last_segment_of_a_clip_ends_it(folder):
    data = load_prepared(folder / "data", "codes", held_out=0.25)
    for part in (data.train, data.held_out):
        assert part["last"] == [start == 1 for start in part["start"]]


def test_sources_are_held_out_whole(folder):
    data = load_prepared(folder / "data", "latents", held_out=0.25)
    sources = [set(part["source_id"]) for part in (data.train, data.held_out)]
    assert [len(s) for s in sources] == [8, 2]
    assert not sources[0] & sources[1]
    assert len(data.train) == 16
    assert data.labels == LABELS
    again = load_prepared(folder / "data", "codes", held_out=0.25)
    assert set(again.held_out["source_id"]) == sources[1]
    fewer = load_prepared(folder / "data", "codes", held_out=0.01)
    assert set(fewer.held_out["source_id"]) < sources[1]


def test_a_dataset_may_be_at_any_address(folder):
    address = "memory://prepared"
    fsspec.filesystem("memory").put(str(folder / "data"), "/prepared", recursive=True)
    local, remote = (
        load_prepared(place, "codes", held_out=0.25) for place in (folder / "data", address)
    )
    assert remote.manifest == local.manifest
    for part in ("train", "held_out"):
        assert getattr(remote, part)["id"] == getattr(local, part)["id"]
    np.testing.assert_array_equal(remote.train[3]["codes"], local.train[3]["codes"])


def test_a_split_for_validation_is_used(tokenizer, tmp_path):
    rows = make_rows(tokenizer, clips=4, segments=1)
    write_prepared(tmp_path, tokenizer, rows[:3])
    write_prepared(tmp_path, tokenizer, rows[3:], split="validation")
    data = load_prepared(tmp_path, "codes")
    assert (len(data.train), len(data.held_out)) == (3, 1)


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        ("train", "train", ""),
        ("train test validation", "train", "validation"),
        ("train extra eval", "train", "eval"),
        ("test training validation", "training", "validation"),
        ("eval train val", "train", "val"),
        (
            "dev.clean dev.other test.clean train.clean.100 train.other.500",
            "train.clean.100 train.other.500",
            "dev.clean dev.other",
        ),
        ("fold1 fold2 fold3", "fold1 fold2 fold3", ""),
        ("Test_a a trainers", "a trainers", "Test_a"),
    ],
)
def test_splits_are_known_by_their_first_words(names, train, held_out):
    assert choose_splits(names.split()) == (tuple(train.split()), tuple(held_out.split()))


def test_nothing_is_trained_on_what_tests():
    with pytest.raises(ValueError, match=r"dev\.clean, test\.clean.*--split"):
        choose_splits(["test.clean", "dev.clean"])


def test_all_splits_to_train_on_are_read(tokenizer, tmp_path):
    # As of hub_dataset, which numbers the clips of each split: source 0 is another in each.
    longer, shorter = (make_rows(tokenizer, clips=2, segments=n) for n in (3, 2))
    parts = {"train.a": longer, "train.b": shorter, "dev.a": shorter[:1], "dev.b": shorter[1:2]}
    for split, rows in (parts | {"test": shorter}).items():
        write_prepared(tmp_path, tokenizer, rows, split=split)
    data = load_prepared(tmp_path, "codes")
    assert data.splits == (("train.a", "train.b"), ("dev.a", "dev.b"))
    assert (len(data.train), len(data.held_out)) == (10, 2)
    assert data.train["last"] == [False, False, True] * 2 + [False, True] * 2
    assert sum(len(batch["mask"]) for batch in batches_of(data, tokenizer, 4)) == 10


def test_folds_are_trained_on_together(tokenizer, tmp_path):
    rows = make_rows(tokenizer, clips=6, segments=1)
    for fold in range(3):
        write_prepared(tmp_path, tokenizer, rows[2 * fold : 2 * fold + 2], split=f"fold{fold}")
    data = load_prepared(tmp_path, "codes", held_out=0.2)
    assert (len(data.train), len(data.held_out)) == (5, 1)
    assert sorted([*data.train["id"], *data.held_out["id"]]) == [row["id"] for row in rows]


def test_a_class_held_out_as_a_whole_is_validated_without_it(tokenizer, tmp_path):
    rows = make_rows(tokenizer, clips=4, segments=1)
    write_prepared(tmp_path, tokenizer, rows[:3])
    write_prepared(tmp_path, tokenizer, [rows[3] | {"label": "wind"}, rows[0]], split="validation")
    data = load_prepared(tmp_path, "codes")
    assert data.labels == LABELS
    collator = make_collator(data, tokenizer, crop_frames=None, seed=0)
    (batch,) = validation_batches(data, collator, batch_size=2)
    assert batch["label"].tolist() == [-1, LABELS.index(rows[0]["label"])]


def batches_of(data, tokenizer, count, num_workers=0, **options):
    config = TrainingConfig(steps=1, batch_size=3, crop_frames=20, seed=4, num_workers=num_workers)
    collator = make_collator(data, tokenizer, crop_frames=20, seed=4)
    return list(islice(training_batches(data, collator, config, **options), count))


@pytest.mark.parametrize("column", ["codes", "latents"])
def test_batches_are_a_function_of_the_step(folder, tokenizer, column):
    data = load_prepared(folder / "data", column, held_out=0.25)
    every = batches_of(data, tokenizer, 15)
    later = batches_of(data, tokenizer, 5, first=10)
    for one, other in zip(every[10:], later, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[k], other[k]) for k in (column, "mask", "label"))
    # Six batches are an epoch of 16 rows; the next is in another order, with other crops.
    assert sum(len(batch["mask"]) for batch in every[:6]) == 16
    assert not any(torch.equal(a[column], b[column]) for a in every[:6] for b in every[6:12])
    assert {tuple(b["mask"].shape)[1] for b in every} == {20}
    assert every[0]["caption"] == [None] * len(every[0]["mask"])


@pytest.mark.slow
def test_workers_read_the_same_batches(folder, tokenizer):
    data = load_prepared(folder / "data", "latents", held_out=0.25)
    for one, other in zip(
        batches_of(data, tokenizer, 14), batches_of(data, tokenizer, 14, num_workers=2), strict=True
    ):
        assert torch.equal(one["latents"], other["latents"])


def test_processes_share_an_epoch(folder, tokenizer):
    data = load_prepared(folder / "data", "latents", held_out=0.25)
    ranks = [batches_of(data, tokenizer, 3, rank=r, world_size=2) for r in range(2)]
    frames = [{tuple(row.flatten()[:5].tolist()) for b in r for row in b["latents"]} for r in ranks]
    assert not frames[0] & frames[1]


def test_latents_are_normalised_and_codes_cut(folder, tokenizer):
    data = load_prepared(folder / "data", "latents", held_out=0.25)
    collator = make_collator(data, tokenizer, crop_frames=None, seed=0)
    first, again = (list(validation_batches(data, collator, batch_size=3)) for _ in range(2))
    assert sum(len(b["mask"]) for b in first) == 4
    assert all(torch.equal(a["latents"], b["latents"]) for a, b in zip(first, again, strict=True))
    row = data.held_out[0]
    stored = torch.from_numpy(np.asarray(row["latents"], dtype=np.float32))
    wanted = (stored - tokenizer.latents_mean) / tokenizer.latents_std
    torch.testing.assert_close(first[0]["latents"][0, : len(wanted)], wanted)
    codes = load_prepared(folder / "data", "codes", held_out=0.25)
    collator = make_collator(codes, tokenizer, crop_frames=None, seed=0, n_codebooks=2)
    assert next(validation_batches(codes, collator, batch_size=2))["codes"].shape[-1] == 2
    collator = make_collator(codes, tokenizer, crop_frames=None, seed=0, n_codebooks=CODEBOOKS + 1)
    with pytest.raises(ValueError, match=r"\b4\b.*\b5\b"):
        next(validation_batches(codes, collator, batch_size=2))


def test_data_that_will_not_do(folder, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="datasets_scripts prepare"):
        load_prepared(tmp_path, "codes")
    write_prepared(tmp_path / "codes", tokenizer, columns=("codes",))
    with pytest.raises(ValueError, match="--latents"):
        load_prepared(tmp_path / "codes", "latents")
    data = load_prepared(folder / "data", "codes")
    with pytest.raises(ValueError, match="1 source"):
        hold_out(data.train.select([0]), 0.1)
    with pytest.raises(ValueError, match=r"\b1\b"):
        load_prepared(folder / "data", "codes", held_out=1.0)
    check_source(data, tokenizer)
    other = make_tokenizer()
    with torch.no_grad():
        next(other.autoencoder.encoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="--tokenizer"):
        check_source(data, other)
    data.manifest["complete"] = False
    with pytest.raises(ValueError, match="preparation"):
        check_source(data, tokenizer)


# Both families

TINY = TrainingConfig(
    steps=5,
    batch_size=4,
    crop_frames=24,
    warmup_steps=2,
    log_every=2,
    validate_every=4,
    sample_every=0,
    checkpoint_every=2,
    num_workers=0,
    accumulate=2,
)
FAMILIES = {
    "diffusion": (train_diffusion, {"width": 32, "depth": 1, "heads": 2}),
    "lm": (train_language_model, {"n_codebooks": 2, "width": 32, "depth": 1, "heads": 2}),
}


def run(family, folder, out, config=TINY, **options):
    train, sizes = FAMILIES[family]
    return train(
        folder / "data",
        out,
        config,
        tokenizer=folder / "tokenizer",
        held_out=0.2,
        preview_seconds=0.3,
        progress=False,
        **(sizes | options),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_resuming_equals_never_having_stopped(folder, tmp_path, family, monkeypatch):
    whole = run(family, folder, tmp_path / "a")
    kind = type(whole)
    original, calls = kind.training_loss, []

    def dying(self, batch, generator):
        calls.append(1)
        if len(calls) > 7:
            raise KeyboardInterrupt
        return original(self, batch, generator)

    monkeypatch.setattr(kind, "training_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(family, folder, tmp_path / "b")
    monkeypatch.undo()
    assert not (tmp_path / "b" / "model").exists()
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        load_run(tmp_path / "b")
    resumed = run(family, folder, tmp_path / "b")
    one, two = whole.state_dict(), resumed.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    files = [load_file(tmp_path / x / "checkpoint" / "optimizer.safetensors") for x in "ab"]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    # And something was learned.
    fresh = run(family, folder, tmp_path / "c", replace(TINY, steps=1)).state_dict()
    assert any(not torch.equal(one[name], fresh[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_leaves_all_that_it_takes_to_go_on(folder, tmp_path, family):
    model = run(family, folder, tmp_path, replace(TINY, steps=2, sample_every=2))
    for label in LABELS:
        wave = next((tmp_path / "samples" / "step-0000002").glob(f"*{label}.wav"))
        assert soundfile.info(wave).frames == round(0.3 * 8000)
        assert wave.with_suffix(".png").exists()
    loaded, tokenizer, info = load_run(tmp_path)
    assert loaded.labels == LABELS == tuple(info["labels"])
    request = make_request(
        tokenizer, 0.2, labels=["rain"], n_codebooks=info.get("n_codebooks"), guidance_scale=1.5
    )
    rows = [m.generate_rows(request, torch.Generator().manual_seed(0))[0] for m in (model, loaded)]
    column = info["column"]
    assert np.array_equal(rows[0][column], rows[1][column])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "16 rows, 4 held out" in card
    assert "trained on train, held out sources of the same" in card
    assert info["splits"] == {"train": ["train"], "held_out": []}
    assert "birds, rain" in card
    # Elsewhere, with another tokenizer, it says so.
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_run(tmp_path)


def test_settings_are_those_of_every_run_and_two_more():
    for wrong, value in (("mixed_precision", "half"), ("crop_frames", 0), ("steps", float("nan"))):
        with pytest.raises(REFUSED):
            TrainingConfig(**({"steps": 1} | {wrong: value}))
    config = TrainingConfig(steps=1, checkpoint_minutes=2.0)
    assert replace(config, steps=2).checkpoint_seconds == 120
