"""The documentation does what it says: blocks run, commands parse, links lead somewhere.

Python blocks are executed, page by page, in a folder that holds what pages speak of, with a tiny
tokenizer in the place of the bundled one. Commands are handed to the parser of their program;
those of `RUN` are run as well, with fewer steps.
"""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from doc_blocks import (
    PAGES,
    ROOT,
    Block,
    blocks,
    commands,
    hidden_commands,
    inline_flags,
    known_flags,
    parse,
)
from models import DIM, RATE, make_autoencoder, tone

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, TensorSource, write_audio

# Python that other tests run: the file of each, and how many blocks it knows of (None: all).
ELSEWHERE = {
    "README.md": ("examples/test_examples.py", None),
    "docs/corpora.md": ("datasets_scripts/corpora/test_corpora.py", 1),
    "docs/datasets.md": ("datasets_scripts/dataset/test_dataset_map_recipes.py", 5),
    "docs/quantizers.md": ("tokenizer/quantizers/test_custom_quantizer.py", 1),
}
# Commands that are run. All others would train, download, or serve.
RUN = {
    "docs/quickstart.md": {"encode", "info", "decode", "evaluate", "prepare", "verify"},
    "docs/generation.md": {
        *("prepare", "train-lm", "train-diffusion", "sample", "evaluate", "report", "export"),
        "export-llm",
    },
}
# Folders that an hour of training made: commands on them are parsed only.
LONG_RUNS = ("runs/examples",)
# Pages that go on with what the commands of docs/generation.md made.
AFTER_GENERATION = ("docs/howto/language-model.md",)
SMALL = {"steps": 2, "width": 24, "depth": 1, "heads": 2, "batch_size": 4, "num_workers": 0}
SMALL |= {"seconds": 0.6, "sample_every": 0, "held_out": 0.4, "crop_frames": 16, "warmup_steps": 1}
SMALL |= {"clips": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """What pages speak of: files, folders, and a tokenizer with as many codebooks as they name."""
    root = tmp_path_factory.mktemp("docs")
    tokenizer = LatentTokenizer.from_autoencoder(make_autoencoder())
    clips = torch.stack([torch.from_numpy(tone(2.0, seed=seed)) for seed in range(4)])
    latents = tokenizer.encode(clips).latents.transpose(1, 2).reshape(-1, DIM).clone()
    quantizer = ResidualVectorQuantizer(DIM, num_codebooks=24, codebook_size=8, iterations=2)
    quantizer.fit(TensorSource(latents), generator=torch.Generator().manual_seed(0))
    tokenizer.set_quantizer(quantizer).add_finetuned_decoder()
    tokenizer.save_pretrained(root / "bundled")
    (root / "latok-demo").mkdir()
    for name in ("speech.wav", "latok-demo/original.wav"):
        write_audio(root / name, tone(1.0), RATE)
    write_audio(root / "start.wav", tone(0.2), RATE)
    for index in range(12):
        folder = root / "my_audio" / ("speech", "music")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_audio(folder / f"{index}.wav", tone(0.6, seed=index), RATE)
    return root


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """A copy of `place`, as the current folder; the bundled tokenizer is the one in it."""
    return enter(place, tmp_path / "here", monkeypatch)


def enter(source: Path, folder: Path, monkeypatch) -> Path:
    shutil.copytree(source, folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr("tokenizer.model.loading.BUNDLED", folder / "bundled")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def generated(place, tmp_path_factory) -> Path:
    """What docs/generation.md leaves behind."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = enter(place, tmp_path_factory.mktemp("generated") / "here", monkeypatch)
        follow("docs/generation.md", monkeypatch)
    return folder


def follow(page: str, monkeypatch) -> None:
    """Executes the blocks of a page, in their order."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page):
        if block.comment.startswith("not run: "):
            continue
        if block.kind == "python" and page not in ELSEWHERE:
            # A failure names the line of the page.
            code = "\n" * (block.line - 1) + _smaller(block.code)
            exec(compile(code, page, "exec"), module.__dict__)
        elif block.kind == "bash":
            for words in commands(block):
                follow_command(block, words, monkeypatch)


def _smaller(code: str) -> str:
    # What pages do on the command line and then again in Python goes into folders of its own.
    code = code.replace('"runs/diffusion"', '"runs/python"') if "train_diffusion(" in code else code
    # The types that tests enforce take no whole numbers for floats.
    code = re.sub(r"\[\((\d+), (\d+)\)\]", r"[(\1.0, \2.0)]", code)
    return re.sub(
        rf"\b({'|'.join(SMALL)})=[\d_.]+", lambda found: f"{found[1]}={SMALL[found[1]]}", code
    )


def follow_command(block: Block, words: list[str], monkeypatch) -> None:
    try:
        options = parse(words, monkeypatch)
    except (SystemExit, ValueError) as error:
        pytest.fail(f"{block.where}: {' '.join(words)}: {error}")
    if options is None or getattr(options, "command", None) not in RUN.get(block.page, ()):
        return
    if any(word.startswith(LONG_RUNS) for word in words):
        return
    for name, value in SMALL.items():
        if isinstance(getattr(options, name, None), (int, float)):
            setattr(options, name, value)
    assert not options.run(options), f"{block.where}: {' '.join(words)}"


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"docs/generation.md", *AFTER_GENERATION}))
@pytest.mark.usefixtures("here")
def test_page(page, monkeypatch):
    follow(page, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/generation.md", *AFTER_GENERATION])
def test_page_on_generation(page, generated, tmp_path, monkeypatch):
    assert (generated / "diffusion-model" / "model_index.json").exists()
    if page != "docs/generation.md":
        enter(generated, tmp_path / "here", monkeypatch)
        follow(page, monkeypatch)


def test_every_block_is_of_a_kind_that_is_checked():
    excused = []
    for page in PAGES:
        for block in blocks(page):
            if block.comment.startswith("not run: "):
                excused.append(block)
            elif block.kind == "toml":
                tomllib.loads(block.code)
            elif block.kind == "yaml":
                yaml.safe_load(block.code)
            elif block.kind == "json":
                json.loads(block.code)
            elif block.kind == "text":
                assert not hidden_commands(block), f"{block.where} has commands in a block of text."
            else:
                assert block.kind in ("python", "bash"), f"{block.where}: who checks {block.kind}?"
    assert all(len(block.comment) > 40 for block in excused), "Say why a block is not run."
    assert len(excused) <= 3, [block.where for block in excused]


def test_python_that_others_run_is_run_by_them():
    for page, (test, count) in ELSEWHERE.items():
        found = [block for block in blocks(page) if block.kind == "python"]
        assert len(found) == (count or len(found)), f"{page} has other Python than {test} knows of."
        assert Path(page).name in (ROOT / "tests" / test).read_text()
    recipes = [block for block in blocks("docs/datasets.md") if block.kind == "python"]
    assert all(block.comment.startswith("recipe: ") for block in recipes)


def test_a_wrong_block_is_noticed(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    for wrong in (
        "```bash\nlatok encode a.wav --bitrates 3\n```",
        "    latok encode a.wav \\\n        --bitrates 3\n",
        "1. A list\n\n   ```bash\n   cat x | latok decode - --what\n   ```\n",
        "```bash\npython -m generative train-lm tokens --out x --steps two\n```",
        "```bash\npython examples/tokenize_dataset.py --outt x\n```",
        "```bash\npython examples/custom_quantizer.py --out x\n```",
        "```bash\naccelerate launch --num_processes 2 -m generative sample runs/lm --oout x\n```",
        "```bash\npip install 'latent-tokenizer[diffuser]'\n```",
        "```bash\nlatoc encode a.wav\n```",
        "```python\nraise ValueError\n```",
    ):
        page.write_text(wrong)
        with pytest.raises((pytest.fail.Exception, ValueError)):
            follow(str(page), monkeypatch)
    page.write_text("```\nx\nlatok encode a.wav\n```\n\n    tree/of/files\n    latok info\n")
    assert all(block.kind == "text" and hidden_commands(block) for block in blocks(str(page)))
    page.write_text("<!-- not run: because it takes a week -->\n```python\n1 / 0\n```\n")
    follow(str(page), monkeypatch)


def test_options_in_the_text_exist():
    known = known_flags()
    wrong = [
        f"{page}: {command} {flag}"
        for page in PAGES
        for command, flag in inline_flags(page)
        if flag not in known.get(command, ())
    ]
    assert not wrong, wrong
    assert len([flag for page in PAGES for flag in inline_flags(page)]) > 50


def strings() -> set[str]:
    """All texts in the packages; what is filled in is ``…``."""
    found = set()
    for package in ("tokenizer", "generative", "datasets_scripts"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def library_text(library: str) -> str:
    files = {"datasets": ("features/audio.py", "fingerprint.py"), "torch": ("cuda/__init__.py",)}
    folder = Path(str(find_spec(library).origin)).parent
    return "".join((folder / name).read_text(encoding="utf-8") for name in files[library])


def holds(text: str, message: str) -> bool:
    """Whether the parts of a message, which ``…`` separates, come one after another in a text."""
    place = 0
    for part in message.split("…"):
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_messages_in_troubleshooting_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (?:`?(\w+)`?: )?`(.+?)` \|", page, flags=re.M)
    assert len(rows) > 30
    ours = strings()
    constraints = (ROOT / "constraints.txt").read_text()
    newest = dict(re.findall(r"^([\w-]+)==(\S+)", constraints, flags=re.M))
    for library, message in rows:
        if library in ("datasets", "torch"):
            # Other versions say it in other words.
            if version(library).split("+")[0] == newest[library]:
                assert holds(library_text(library), message), message
        elif library != "pip" and not message.startswith("No module named"):
            assert any(holds(text, message) for text in ours), message


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_site_is_whole(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists()
    assert not list(site.rglob("*.py"))
    # A link out of docs/ leads to a copy.
    assert "SignQuantizer" in (site / "source/examples/custom_quantizer.py.txt").read_text()
    assert "source/examples/custom_quantizer.py.txt" in (site / "quantizers.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("package", ["tokenizer", "generative", "datasets_scripts"])
def test_reference_has_every_export(site, package):
    text = (site / "api" / f"{package}.html").read_text()
    exports = __import__(package).__all__
    missing = [name for name in exports if f'id="{package}.{name}"' not in text]
    assert not missing, f"Name {missing} in docs/api/{package}.md."


@pytest.mark.slow
def test_site_asks_nothing_of_the_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page.read_text())
        assert not [
            tag for tag in loaded if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)
        ]


def test_names_of_tests_on_the_page_of_reliability_are_right():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = page[page.index("## Found by using it") : page.index("## Numbers")]
    file, found = "", []
    for path, name in re.findall(r"`([\w/]*(?:\.py)?)(?:::(\w+))?`", table):
        if not path.endswith(".py") and not name:
            continue
        file = path or file
        text = (ROOT / "tests" / file).read_text()
        assert not name or f"def {name}(" in text, f"{file}::{name}"
        found.append(name)
    assert len(found) > 60


def test_links_of_pages_outside_of_the_site_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "examples/README.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


@pytest.mark.slow
def test_pictures_are_those_of_their_script(place, tmp_path, monkeypatch):
    out, tiny = tmp_path / "pictures", place / "bundled"
    script = ROOT / "examples" / "concept_pictures.py"
    monkeypatch.setattr(sys, "argv", ["", "--out", str(out), "--tokenizer", str(tiny)])
    runpy.run_path(str(script), run_name="__main__")
    made = {path.name for path in out.iterdir()}
    assert made == {path.name for path in (ROOT / "docs" / "pictures").iterdir()}
    # What does not depend on the tokenizer is equal.
    diagrams = sorted(
        path.name for path in out.glob("*.svg") if path.stem not in ("rate", "residual")
    )
    assert {"pipeline.svg", "rooms.svg", "walk-encode.svg"} <= set(diagrams)
    for name in diagrams:
        assert (out / name).read_bytes() == (ROOT / "docs" / "pictures" / name).read_bytes()
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "docs" / "pictures").iterdir())
