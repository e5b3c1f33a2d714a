"""Rules for the files of the repository: how large they are, and where they lie."""

import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from doc_blocks import PAGES

ROOT = Path(__file__).parents[2]
PACKAGES = ("tokenizer", "generative", "datasets_scripts")
# Folders of tests that are of no single room.
OTHER_TESTS = ("project", "examples")


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Every file that git knows."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("this is no clone of the repository")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if (ROOT / name).is_file()]


def test_only_weights_are_large(tracked):
    # Every version of a large file stays in the history of each full clone.
    large = [path for path in tracked if path.stat().st_size > 1_000_000]
    patterns = (
        "tokenizer/pretrained/*/model.safetensors",
        "generative/pretrained/*/*/*.safetensors",
    )
    weights = [path for path in tracked if any(map(path.match, patterns))]
    assert weights
    assert set(large) <= set(weights)


def test_no_rule_hides_a_room_from_git_and_wheels():
    rules = (ROOT / ".gitignore").read_text().split()
    names = {path.name for package in PACKAGES for path in (ROOT / package).rglob("*")}
    hidden = {rule.rstrip("/") for rule in rules if "/" not in rule[:-1]} & names
    assert hidden <= {"__pycache__"}


def test_tests_lie_where_the_rooms_do():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        known = folder.parts[0] in OTHER_TESTS or (
            folder.parts[0] in PACKAGES and (ROOT / folder).is_dir()
        )
        assert known, f"{path}: there is no room {folder}"


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_paths_on_the_pages_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = "|".join((*PACKAGES, "tests", "examples", "docs"))
    # A link is relative to its page; pages that list tests leave out "tests/".
    bases = (ROOT, ROOT / "tests", (ROOT / page).parent)
    wrong = [
        name
        for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", text)
        if "." in name and not any((base / name).exists() for base in bases)
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("page", PAGES)
def test_modules_on_the_pages_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(rf"\b(?:{'|'.join(PACKAGES)})(?:\.\w+){{2,}}", text):
        pkgutil.resolve_name(name)
