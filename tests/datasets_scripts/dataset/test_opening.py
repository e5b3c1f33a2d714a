"""A prepared dataset is validated where it is opened: one error with the file, key and value."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import DIM, ENTRIES
from preparing import make_folder, rows_of

from datasets_scripts import (
    CodesCollator,
    LatentsCollator,
    RowOptions,
    open_prepared,
    prepare_dataset,
    read_manifest,
    verify_dataset,
)
from datasets_scripts.dataset.schema import parse
from datasets_scripts.dataset.storage import Folder
from tokenizer.errors import InputError

WRONG = (None, "x", -1, 1.5, True, [], {}, float("nan"), 10**30)


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("opening")
    make_folder(root / "in", 4)
    options = RowOptions(codes=True, latents=True, clips_per_shard=2)
    prepare_dataset("audiofolder", root / "in", root / "o", tokenizer=tokenizer, options=options)
    return root / "o"


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "o")


def leaves(value, path=()):
    """Where the values of a JSON document are: of lists the first entry stands for all."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from leaves(item, (*path, key))


def changed(value, path, new):
    """A copy of a JSON document with another value in one place."""
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "statistics.json"])
def test_any_changed_value_is_accepted_or_one_clear_error(copy, name):
    whole = json.loads((copy / name).read_text())
    assert open_prepared(copy) == read_manifest(Folder(copy))
    messages = {}
    for path in leaves(whole):
        for value in WRONG:
            (copy / name).write_text(json.dumps(changed(whole, path, value)))
            with suppress(InputError, FileNotFoundError):
                open_prepared(copy)
                continue
            with pytest.raises((InputError, FileNotFoundError)) as caught:
                open_prepared(copy)
            messages[path[0], repr(value)] = str(caught.value)
    assert all(name in message for message in messages.values())
    needed = {
        "manifest.json": {"format_version", "fingerprint", "hop_length", "options", "shards"},
        "statistics.json": {"rows", "frames", "latents_std", "splits"},
    }
    assert needed[name] <= {key for key, _ in messages}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("sampling_rate",), "8000"),
        (("hop_length",), 0),
        (("codebook_sizes", 0), -5),
        (("options", "codes"), "yes"),
        (("shards", 0, "rows"), None),
        (("shards", 0, "file"), "../x.parquet"),
        (("complete",), 1),
    ],
)
def test_errors_name_file_key_and_value(copy, path, value):
    whole = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(changed(whole, path, value)))
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        open_prepared(copy)
    assert str(path[-1] if isinstance(path[-1], str) else path[0]) in str(caught.value) or (
        str(value) in str(caught.value)
    )
    assert str(value) in str(caught.value)


def test_datasets_of_another_shape_are_refused(copy):
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        open_prepared(copy / "nowhere")
    shard = copy / "data" / "train-00001.parquet"
    table = pq.read_table(shard)
    for other, problem in (
        (table.drop_columns(["gain"]), "gain"),
        (table.set_column(0, "id", pa.array([1, 2])), "int64"),
        (table.slice(0, 1), "1 rows"),
    ):
        pq.write_table(other, shard)
        with pytest.raises(InputError, match=problem) as caught:
            open_prepared(copy)
        assert "train-00001.parquet" in str(caught.value)
    shard.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"train-00001\.parquet"):
        open_prepared(copy)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.parquet"):
        open_prepared(copy)


@pytest.mark.parametrize("code", [-1, ENTRIES])
def test_codes_out_of_range_are_not_trained_on(prepared, tokenizer, code):
    collate = CodesCollator(codebook_sizes=tokenizer.codebook_sizes)
    row = rows_of(prepared)[0]
    assert collate([row])["codes"].shape[-1] == len(tokenizer.codebook_sizes)
    row["codes"] = row["codes"].copy()
    row["codes"][0, 1] = code
    with pytest.raises(InputError, match=rf"{code} of codebook 1") as caught:
        collate([row])
    assert row["id"] in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_not_trained_on(prepared, value):
    collate = LatentsCollator(np.zeros(DIM), np.ones(DIM))
    row = rows_of(prepared)[0]
    row["latents"] = row["latents"].copy()
    row["latents"][-1, 0] = value
    with pytest.raises(InputError, match=row["id"]):
        collate([row])


def test_cells_that_are_null_are_found_by_verify(copy):
    shard = copy / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    for name in ("num_channels", "num_samples", "gain", "fingerprint", "id"):
        place = table.column_names.index(name)
        kind = table.schema.field(name)
        pq.write_table(table.set_column(place, kind, pa.nulls(len(table), kind.type)), shard)
        assert any(f"{name} is null" in problem for problem in verify_dataset(copy))


@dataclass(frozen=True)
class Example:
    number: int
    names: tuple[str, ...]
    inner: dict[str, float]
    missing: str | None = None


def test_parse():
    value = {"number": 1, "names": ["a"], "inner": {"x": 2}, "of a later version": 3}
    assert parse(Example, value, "f") == Example(1, ("a",), {"x": 2.0})
    for key, wrong, place in (
        ("number", True, "f: number"),
        ("names", ["a", 1], "f: names[1]"),
        ("inner", {"x": None}, "f: inner.x"),
        ("missing", 1, "f: missing"),
    ):
        with pytest.raises(InputError) as caught:
            parse(Example, value | {key: wrong}, "f")
        assert str(caught.value).startswith(place)
    with pytest.raises(InputError, match="'number'"):
        parse(Example, {}, "f")
