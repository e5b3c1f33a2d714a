"""A corpus, what is prepared of it, and corpora that yield what a test says."""

import pytest
from preparing import BOTH, SMALL, StandIn, make_folder

from datasets_scripts import prepare_dataset


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    make_folder(root, 11)
    return root


@pytest.fixture(scope="session")
def prepared(corpus, tokenizer, tmp_path_factory):
    """The corpus, prepared with `BOTH`; not to be changed."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare_dataset("audiofolder", corpus, out, tokenizer=tokenizer, options=BOTH, resources=SMALL)
    return out


@pytest.fixture
def stand_in(monkeypatch):
    """Makes the corpus "x" yield these items."""

    def use(*items, **options):
        corpora = {"x": StandIn(*items, **options)}
        monkeypatch.setattr("datasets_scripts.corpora.CORPORA", corpora)

    return use
