"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from models import make_tokenizer

from tokenizer import data
from tokenizer.model import LatentTokenizer


@pytest.fixture(scope="session", autouse=True)
def short_validation() -> Iterator[None]:
    """Of tiny models, validation costs more than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "HELD_OUT_CROPS", 2)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> LatentTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def beam_tokenizer() -> LatentTokenizer:
    return make_tokenizer(beam_width=3)
