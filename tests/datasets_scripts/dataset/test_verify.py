"""Statistics, and what `verify` finds."""

import json
import shutil

import numpy as np
import pytest
from models import DIM, ENTRIES, RATE
from preparing import rows_of

from datasets_scripts import read_manifest, verify_dataset
from datasets_scripts.cli import main
from datasets_scripts.dataset.storage import Folder


def test_statistics_are_those_of_the_rows(prepared):
    rows = rows_of(prepared)
    found = json.loads((prepared / "statistics.json").read_text())
    assert found["rows"] == len(rows)
    seconds = sum(row["num_samples"] for row in rows) / RATE
    assert found["hours"] == pytest.approx(seconds / 3600)
    codes = np.concatenate([row["codes"] for row in rows])
    assert found["frames"] == len(codes)
    for k, book in enumerate(found["codebooks"]):
        share = np.bincount(codes[:, k], minlength=ENTRIES) / len(codes)
        entropy = -sum(p * np.log2(p) for p in share if p)
        assert book["entropy"] == pytest.approx(entropy)
        assert book["perplexity"] == pytest.approx(2**entropy)
        assert book["utilization"] == pytest.approx(np.mean(share > 0))
    latents = np.concatenate([row["latents"] for row in rows]).astype(np.float64)
    assert latents.shape[1] == DIM
    np.testing.assert_allclose(found["latents_mean"], latents.mean(0), rtol=1e-9)
    np.testing.assert_allclose(found["latents_std"], latents.std(0), rtol=1e-6)


def damage_shard(out):
    path = next(iter(out.glob("data/*.parquet")))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "SHA-256"


def cut_shard(out):
    path = next(iter(out.glob("data/*.parquet")))
    path.write_bytes(path.read_bytes()[:100])
    return "no Parquet file"


def remove_shard(out):
    next(iter(out.glob("data/*.parquet"))).unlink()
    return "cannot be read"


def add_shard(out):
    shutil.copy(out / "data/train-00000.parquet", out / "data/train-00009.parquet")
    return "data/train-00009.parquet is not in manifest.json"


def swap_shards(out):
    a, b = out / "data/train-00000.parquet", out / "data/train-00002.parquet"
    first, last = a.read_bytes(), b.read_bytes()
    a.write_bytes(last), b.write_bytes(first)
    return "rows, not"


def change_statistics(out):
    path = out / "statistics.json"
    value = json.loads(path.read_text())
    value["splits"]["train"]["sums"]["code_counts"][0][0] += 1
    path.write_text(json.dumps(value))
    return "code_counts of 'train' are not those of the rows"


def unfinish(out):
    path = out / "manifest.json"
    path.write_text(path.read_text().replace('"complete": true', '"complete": false'))
    return "not complete"


@pytest.mark.parametrize(
    "harm",
    [
        damage_shard, cut_shard, remove_shard, add_shard, swap_shards, change_statistics, unfinish,
    ],
)  # fmt: skip
def test_verify_finds_what_is_wrong(prepared, tmp_path, harm, capsys):
    out = tmp_path / "o"
    shutil.copytree(prepared, out)
    assert main(["verify", str(out)]) == 0
    capsys.readouterr()
    expected = harm(out)
    assert main(["verify", str(out)]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert any(expected in line for line in printed), printed


def rewrite(out, **changes):
    """Writes the first shard again, with other values in its first row, and a fitting manifest."""
    from datasets_scripts.dataset.shards import writing_shard

    folder = Folder(out)
    manifest = read_manifest(folder)
    old = manifest.shards[0]
    rows = [row for row in rows_of(out)][: old.rows]
    rows[0] |= changes
    with writing_shard(folder, old.file, manifest.row_format()) as writer:
        for row in rows:
            writer.write(row)
    value = json.loads((out / "manifest.json").read_text())
    value["shards"][0] |= {"bytes": writer.num_bytes, "sha256": writer.sha256}
    (out / "manifest.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a/clip002.wav"}, "the id occurs twice"),
        ({"fingerprint": "0123"}, "made by the tokenizer 0123"),
        ({"codes": np.full((3, 4), ENTRIES, np.int16)}, "a code is out of range"),
        ({"codes": np.full((3, 4), -1, np.int16)}, "a code is out of range"),
        ({"latents": np.full((3, DIM), np.inf, np.float16)}, "not finite"),
        ({"gain": [1.0, 2.0, 3.0]}, "3 gains for"),
        ({"num_channels": 50}, "frames for 50 channels"),
    ],
)
def test_verify_looks_into_rows(prepared, tmp_path, changes, message):
    out = tmp_path / "o"
    shutil.copytree(prepared, out)
    rewrite(out)
    assert verify_dataset(out) == []
    rewrite(out, **changes)
    found = verify_dataset(out)
    assert any(message in problem for problem in found), found


def test_verify_needs_a_manifest(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        verify_dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json .*None"):
        verify_dataset(tmp_path)
