"""A corpus with a broken file, prepared by one process: processes and clusters write the same."""

import pytest
from preparing import SHARDS_OF_TWO, files_of, make_folder

from datasets_scripts import prepare_dataset


@pytest.fixture(scope="session")
def spoiled(tmp_path_factory):
    root = tmp_path_factory.mktemp("spoiled")
    make_folder(root, 40, longest=3.0)
    (root / "a" / "clip004x.wav").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def spoiled_files(spoiled, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "o"
    prepare_dataset("audiofolder", spoiled, out, tokenizer=tokenizer, options=SHARDS_OF_TWO)
    return files_of(out)
