"""Clashes with distributions that own our import names are found and explained."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def install(site, name, files, version="9.8.7"):
    """Puts on disk what an installer leaves of a distribution: its files and their list."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    contents = {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    contents |= files
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    for path, text in contents.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def run(statement, *folders):
    """Runs a statement in a fresh process with the folders first on the path."""
    path = os.pathsep.join(str(folder) for folder in folders)
    return subprocess.run(
        [sys.executable, "-P", "-c", statement],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "package"), [("tokenizer", "tokenizer"), ("monai-generative", "generative")]
)
def test_a_rival_behind_us_is_named(tmp_path, name, package):
    install(tmp_path, name, {f"{package}/__init__.py": ""})
    result = run("import tokenizer", ROOT, tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert f"PackageClashError: latent-tokenizer cannot share an environment with {name}" in last
    assert "9.8.7" in last
    assert str(tmp_path) in last
    assert repr(package) in last
    assert f"pip uninstall {name} latent-tokenizer" in last


def test_without_a_rival_import_is_silent_and_light(tmp_path):
    install(tmp_path, "tokenizers", {"tokenizers/__init__.py": ""})
    statement = "import tokenizer, sys; assert 'torch' not in sys.modules"
    result = run(statement, ROOT, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_only_the_package_counts_not_the_distribution_name(tmp_path):
    install(tmp_path, "generative", {"another_name/__init__.py": ""})
    result = run("import tokenizer", ROOT, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_rival_without_a_file_list_counts(tmp_path):
    install(tmp_path, "tokenizer", {"tokenizer/__init__.py": ""})
    next(tmp_path.glob("*.dist-info/RECORD")).unlink()
    result = run("import tokenizer", ROOT, tmp_path)
    assert "cannot share an environment with tokenizer 9.8.7" in result.stderr


@pytest.mark.parametrize("package", ["generative", "datasets_scripts"])
def test_our_other_packages_tell_when_another_tokenizer_hides_ours(tmp_path, package):
    install(tmp_path, "tokenizer", {"tokenizer/__init__.py": "__all__ = ['split_into_words']\n"})
    result = run(f"import {package}", tmp_path, ROOT)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last.startswith("ImportError: The package 'tokenizer' at")
    assert str(tmp_path / "tokenizer" / "__init__.py") in last
    assert repr(package) in last


def test_our_command_tells_when_another_tokenizer_overwrote_ours(tmp_path):
    # Installed over ours in one folder, its __init__.py replaces ours, but our cli/ stays.
    install(tmp_path, "tokenizer", {"tokenizer/__init__.py": "__all__ = ['split_into_words']\n"})
    shutil.copytree(ROOT / "tokenizer" / "cli", tmp_path / "tokenizer" / "cli")
    for name in ("_clash.py", "command.py", "errors.py"):
        shutil.copy(ROOT / "tokenizer" / name, tmp_path / "tokenizer")
    result = run("import sys; from tokenizer.cli import main; sys.exit(main(['info']))", tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("latok: latent-tokenizer cannot share an environment with")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["generative", "datasets_scripts"])
def test_our_other_packages_import_beside_our_tokenizer(package):
    result = run(f"import {package}", ROOT)
    assert (result.returncode, result.stderr) == (0, "")
