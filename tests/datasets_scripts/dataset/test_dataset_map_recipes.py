"""The recipes of docs/datasets.md for `Dataset.map`: each is run as it is written there."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from models import RATE, tone

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


def recipe(name):
    """The Python block of the page that follows the line ``<!-- recipe: name -->``."""
    found = re.search(rf"<!-- recipe: {name} -->\n+```python\n(.*?)```", DOCS.read_text(), re.S)
    assert found, f"docs/datasets.md has no recipe {name!r}."
    return found[1]


def test_every_recipe_is_run_here():
    named = set(re.findall(r"<!-- recipe: (.*?) -->", DOCS.read_text()))
    assert named == {"map", "gpu", "streaming", "prepared", "train"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    """A folder as the recipes find it: ``my_audio``, ``my_dataset`` and ``my_tokenizer``."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "my_audio").mkdir()
    for i in range(6):
        soundfile.write(root / "my_audio" / f"{i}.wav", tone(0.2 + 0.1 * i, seed=i).T, RATE)
    tokenizer.save_pretrained(root / "my_tokenizer")
    # As the hub has it. `datasets` itself would want torchcodec to write it.
    files = sorted((root / "my_audio").glob("*.wav"))
    audio = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    schema = datasets.Features({"audio": datasets.Audio()}).arrow_schema
    (root / "my_dataset").mkdir()
    pq.write_table(pa.table({"audio": audio}, schema=schema), root / "my_dataset/train.parquet")
    return root


@pytest.fixture(scope="module")
def expected(place, tokenizer):
    paths = sorted((place / "my_audio").glob("*.wav"))
    return [tokenizer.encode_codes(path)["codes"] for path in paths]


def run(place, code, **env):
    """Runs a recipe in a process of its own, as a script: spawned workers import it again."""
    script = place / "recipe.py"
    script.write_text(code)
    settings = {"HF_HOME": str(place / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(DOCS.parents[1]), **settings, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_codes(found, expected):
    for row, codes in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(row["codes"]), codes)


@pytest.mark.slow
def test_map_is_cached(place, expected):
    code = recipe("map") + "\nprint(ds.cache_files[0]['filename'])\nds.save_to_disk('mapped')\n"
    first = run(place, code)
    assert_codes(datasets.load_from_disk(str(place / "mapped")), expected)
    # Another process finds what the first one made.
    cache = Path(first.split()[-1])
    written = cache.stat().st_mtime_ns
    assert run(place, recipe("map") + "\nprint(ds.cache_files[0]['filename'])\n") == first
    assert cache.stat().st_mtime_ns == written


@pytest.mark.slow
def test_gpu_recipe_on_two_devices(place, expected):
    # The machine of the tests has no GPU: the recipe's list of devices says what there is.
    code = recipe("gpu").replace("torch.cuda.device_count()", "0")
    assert "[torch.device('cpu')]" in recipe("gpu").replace('"', "'")
    assert "set_start_method" in code
    code = code.replace('[torch.device("cpu")]', '2 * [torch.device("cpu")]')
    run(place, code)
    assert_codes(datasets.load_from_disk(str(place / "codes")), expected)


def run_here(code, place, monkeypatch):
    monkeypatch.chdir(place)
    script = place / "recipe.py"
    script.write_text(code)
    return runpy.run_path(str(script), run_name="__main__")


def test_streaming_recipe(place, expected, monkeypatch):
    names = run_here(recipe("streaming"), place, monkeypatch)
    assert isinstance(names["ds"], datasets.IterableDataset)
    assert_codes(names["ds"], expected)


def test_prepared_and_training_recipes(place, expected, monkeypatch):
    datasets.disable_progress_bars()
    names = run_here(recipe("prepared"), place, monkeypatch)
    assert_codes(names["ds"], expected)
    assert names["audio"].shape[0] == 1
    names = run_here(recipe("train"), place, monkeypatch)
    batch = names["batch"]
    assert batch["codes"].shape[-1] == expected[0].shape[-1]
    assert batch["mask"].any(1).all()
    datasets.enable_progress_bars()
