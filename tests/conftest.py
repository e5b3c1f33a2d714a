"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import browser  # noqa: F401 (a fixture)
from models import RATE, make_tokenizer, tone

from tokenizer.audio import write_audio
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.training import reconstruction

# Left out by `sh test.sh --quick`, as are the tests that are marked where they stand: places whose
# tests start other processes, train, or take what only full checks need.
SLOW_PLACES = (
    "tests/examples/",
    "tests/project/test_clash.py",
    "tests/project/test_faults.py",
    "tests/project/test_hostile",
    "tests/project/test_docs.py::test_page[docs/quickstart.md]",
    "tests/tokenizer/benchmarks/",
    "tests/generative/test_generative_cli.py",
    "tests/generative/cli/",
    "tests/project/test_transformers_suite.py",
    "tests/datasets_scripts/preparation/test_prepare_processes.py",
    "tests/datasets_scripts/preparation/test_resuming.py",
    "tests/tokenizer/evaluation/test_perceptual.py",
    "tests/tokenizer/evaluation/test_report.py",
    "tests/tokenizer/evaluation/test_comparison.py",
    "tests/tokenizer/training/test_adversarial.py",
    "tests/tokenizer/training/test_end_to_end.py",
    "tests/tokenizer/training/test_stages.py::test_losses_do_not_depend_on_the_number_of_workers",
    "tests/tokenizer/autoencoders/test_detail.py",
    "tests/tokenizer/networks/test_stepping.py::test_any_chunks_give_the_codes_and_samples_of_the_whole",
    "tests/tokenizer/networks/test_stepping.py::test_latency_is_what_is_stated_to_the_sample",
)


# Marks of the common tests of transformers (`peer_suites`).
PEER_MARKS = (
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test",
    "torch_compile_test",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for mark in PEER_MARKS:
        config.addinivalue_line("markers", f"{mark}: of a peer's test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW_PLACES) or "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def short_validation() -> Iterator[None]:
    """Of tiny models, validation costs more than training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "HELD_OUT_CROPS", 2)
        yield


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """A folder of six short files."""
    root = tmp_path_factory.mktemp("audio")
    for i in range(6):
        write_audio(root / f"{i}.wav", tone(1.5, seed=i), RATE)
    return root


@pytest.fixture(scope="session")
def tokenizer() -> LatentTokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def beam_tokenizer() -> LatentTokenizer:
    return make_tokenizer(beam_width=3)
