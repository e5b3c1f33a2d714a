"""Fixtures that many tests share."""

from __future__ import annotations

import pytest
from models import make_tokenizer

from tokenizer.model import LatentTokenizer


@pytest.fixture(scope="session")
def tokenizer() -> LatentTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def beam_tokenizer() -> LatentTokenizer:
    return make_tokenizer(beam_width=3)
