"""Shards, their schema and the ways to load them; storage, manifest, card and hub."""

import hashlib
import json

import datasets
import numpy as np
import pytest
from models import CODEBOOKS, DIM
from preparing import COLUMNS, make_folder, rows_of

from datasets_scripts import RowOptions, prepare_dataset, push_dataset, read_manifest, save_to_disk
from datasets_scripts.dataset.manifest import Failure, Manifest, ShardRecord
from datasets_scripts.dataset.shards import RowFormat, read_rows, split_name, writing_shard
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Statistics, total


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    make_folder(root / "in" / "train", 5)
    make_folder(root / "in" / "test", 3, seed=1)
    options = RowOptions(codes=True, latents=True, clips_per_shard=2)
    prepare_dataset("audiofolder", root / "in", root / "o", tokenizer=tokenizer, options=options)
    return root / "o"


@pytest.fixture(autouse=True)
def no_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make_row(i, frames, codes=True, latents=True, **changes):
    rng = np.random.default_rng(i)
    return {
        "id": f"row{i}",
        "source_id": "clip",
        "start": i,
        "codes": rng.integers(0, 1000, (frames, 3)).astype(np.int16) if codes else None,
        "latents": rng.normal(size=(frames, 2)).astype(np.float16) if latents else None,
        "gain": np.array([0.5] * (1 + i % 2), dtype=np.float32),
        "num_samples": 10 * frames,
        "num_channels": 1 + i % 2,
        "label": None if i % 2 else "dog",
        "caption": "ein Hund, 犬",
        "metadata": None,
        "fingerprint": "0123",
        **changes,
    }


@pytest.mark.parametrize(("codes", "latents"), [(True, True), (True, False), (False, True)])
def test_rows_come_back_as_they_were(tmp_path, codes, latents, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr("datasets_scripts.dataset.shards.GROUP_ROWS", 4)
    rows = [make_row(i, 1 + i * 3 % 7, codes, latents) for i in range(11)]
    row_format = RowFormat(3 if codes else None, "int16", 2 if latents else None)
    with writing_shard(Folder(tmp_path), "data/x.parquet", row_format) as writer:
        for row in rows:
            writer.write(row)
    path = tmp_path / "data" / "x.parquet"
    assert (writer.num_rows, writer.num_bytes) == (11, path.stat().st_size)
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    file = pq.ParquetFile(path)
    assert file.num_row_groups == 3
    found = [row for batch in file.iter_batches() for row in read_rows(batch, COLUMNS)]
    for ours, row in zip(found, rows, strict=True):
        for name in COLUMNS:
            if row[name] is None or not isinstance(row[name], np.ndarray):
                assert ours[name] == row[name]
            else:
                np.testing.assert_array_equal(ours[name], row[name])


def test_wide_codes_are_int32(tmp_path):
    row = make_row(0, 3, latents=False)
    row["codes"] = np.full((3, 3), 40_000, np.int32)
    with writing_shard(Folder(tmp_path), "x.parquet", RowFormat(3, "int32", None)) as writer:
        writer.write(row)
    found = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path))
    assert np.array(found[0]["codes"]).tolist() == [[40_000] * 3] * 3


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def write_half():
        row_format = RowFormat(3, "int16", 2)
        with writing_shard(Folder(tmp_path), "data/x.parquet", row_format) as writer:
            writer.write(make_row(0, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list((tmp_path / "data").iterdir()) == []


FEATURES = {
    "codes": datasets.Array2D((None, CODEBOOKS), "int16"),
    "latents": datasets.Array2D((None, DIM), "float16"),
    "gain": datasets.List(datasets.Value("float32")),
    "label": datasets.Value("string"),
    "num_samples": datasets.Value("int64"),
}


def assert_loaded(found, rows, tokenizer):
    for name, feature in FEATURES.items():
        assert found.features[name] == feature
    for row, expected in zip(found, rows, strict=True):
        assert row["id"] == expected["id"]
        np.testing.assert_array_equal(np.array(row["codes"]), expected["codes"])
        np.testing.assert_array_equal(np.array(row["latents"]), expected["latents"])
        shape = (expected["num_channels"], expected["num_samples"])
        assert tokenizer.decode_codes(row).shape == shape
        assert tokenizer.decode_latents(row).shape == shape


def test_load_dataset_finds_the_splits(prepared, tokenizer, tmp_path):
    found = datasets.load_dataset(str(prepared), cache_dir=str(tmp_path))
    assert set(found) == {"train", "test"}
    for split in found:
        assert_loaded(found[split], rows_of(prepared, split), tokenizer)
    numpy = found["train"].with_format("numpy")
    np.testing.assert_array_equal(numpy[1]["codes"], rows_of(prepared)[1]["codes"])


def test_load_dataset_as_parquet_files(prepared, tokenizer, tmp_path):
    files = str(prepared / "data" / "train-*.parquet")
    found = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert_loaded(found, rows_of(prepared), tokenizer)


def test_it_can_be_streamed(prepared, tokenizer, tmp_path):
    found = datasets.load_dataset(
        str(prepared), split="train", streaming=True, cache_dir=str(tmp_path)
    )
    assert isinstance(found, datasets.IterableDataset)
    assert_loaded(found, rows_of(prepared), tokenizer)


def test_load_from_disk(prepared, tokenizer, tmp_path):
    save_to_disk(prepared, tmp_path / "saved")
    found = datasets.load_from_disk(str(tmp_path / "saved"))
    assert_loaded(found["train"], rows_of(prepared), tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    with pytest.raises(ValueError, match="saved"):
        save_to_disk(prepared, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        save_to_disk(tmp_path / "saved", tmp_path / "other")


def test_codes_alone_load_with_latents_none(tokenizer, tmp_path):
    make_folder(tmp_path / "in", 2)
    prepare_dataset("audiofolder", tmp_path / "in", tmp_path / "o", tokenizer=tokenizer)
    found = datasets.load_dataset(
        str(tmp_path / "o"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert found[0]["latents"] is None
    assert tokenizer.decode_codes(found[0]).shape[-1] == found[0]["num_samples"]


def test_the_card_is_valid(prepared):
    import yaml

    text = (prepared / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    found = yaml.safe_load(header)
    assert found["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "test", "path": "data/test-*.parquet"},
            ],
        }
    ]
    counts = {split["name"]: split["num_examples"] for split in found["dataset_info"][0]["splits"]}
    assert counts == {"train": 5, "test": 3}
    assert found["license"] == "other"
    assert "| train | 5 |" in body


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", "train"), ("dev-clean", "dev.clean"), ("a b/c", "a.b.c"), ("--", "train")],
)
def test_names_of_splits(split, expected):
    assert split_name(split) == expected


def test_the_manifest_comes_back_as_it_was(prepared):
    record = ShardRecord("data/x-00000.parquet", "x", 0, 3, 2, 10, "ab", "cd")
    manifest = Manifest(
        corpus="c", root="r", tokenizer=None, fingerprint="f", codes_fingerprint=None,
        sampling_rate=8000, hop_length=80, frame_rate=100.0, latent_dim=4,
        channels_coded_jointly=1, codebook_sizes=(16,), options=RowOptions().to_json(),
        splits=("x",), shards=(record,), failures=(Failure("x", "a", "gone", 2),),
    )  # fmt: skip
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    found = read_manifest(Folder(prepared))
    assert Manifest.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match=r"manifest\.json .*99"):
        Manifest.from_json(manifest.to_json() | {"format_version": 99})


def test_sums_add_up():
    rows = [make_row(i, 5 + i) for i in range(6)]
    whole = Statistics([1000] * 3, 2)
    parts = [Statistics([1000] * 3, 2) for _ in range(3)]
    for i, row in enumerate(rows):
        whole.add_row(row)
        parts[i % 3].add_row(row)
    parts = [Statistics.from_json(json.loads(json.dumps(part.to_json()))) for part in parts]
    added = total(parts, Statistics([1000] * 3, 2))
    assert added.rows == whole.rows == 6
    assert all((a == b).all() for a, b in zip(added.code_counts, whole.code_counts, strict=True))
    np.testing.assert_allclose(added.latents_sum, whole.latents_sum, rtol=1e-12)
    with pytest.raises(ValueError, match="codebooks"):
        whole.add(Statistics([10], 2))


def test_pushing_uploads_the_folder_as_it_is(prepared, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo, **options):
            calls.append((repo, options))
            return f"https://hub/{repo}"

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push_dataset(prepared, "me/tokens", private=True) == "https://hub/me/tokens"
    (_, made), uploaded = calls
    assert made == {"repo_type": "dataset", "private": True, "exist_ok": True}
    assert uploaded["folder_path"] == str(prepared)
    assert (uploaded["repo_id"], uploaded["repo_type"]) == ("me/tokens", "dataset")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        push_dataset(tmp_path, "me/tokens")


# Storage


@pytest.mark.parametrize("address", ["{path}", "file://{path}", "memory://test{path}"])
def test_folders_anywhere(tmp_path, address):
    folder = Folder(address.format(path=tmp_path) + "/x/")
    assert not folder.exists("a.json")
    assert folder.names("sub") == []
    assert folder.read_json("a.json") is None
    folder.write_json("a.json", {"k": [1]})
    folder.write("sub/b", b"first")
    folder.write("sub/b", "second")
    assert folder.read_json("a.json") == {"k": [1]}
    assert folder.read("sub/b") == b"second"
    with folder.open("sub/b") as stream:
        assert stream.read() == b"second"

    def write_half():
        with folder.writing("sub/c") as path:
            path.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert folder.names("sub") == ["b"]
    with pytest.raises(FileNotFoundError):
        folder.read("sub/c")
    folder.write("torn.json", b'{"k": [1')
    assert folder.read_json("torn.json") is None
    folder.remove("sub/b")
    folder.remove("sub/b")
    assert folder.names("sub") == []


def test_what_a_killed_run_left_is_removed(tmp_path):
    folder = Folder(tmp_path)
    writing = folder.writing("data/x")
    writing.__enter__().write_bytes(b"half")
    (tmp_path / "data" / ".mine").write_bytes(b"not ours")
    assert folder.names("data") == []
    folder.remove_partial("data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".mine"]
