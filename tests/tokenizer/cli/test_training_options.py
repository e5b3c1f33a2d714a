"""What `latok train`, `fit` and `finetune` take: as flags, in a file, and in the docs."""

import argparse
import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from models import RATE

from tokenizer.autoencoders.lapped.model import LappedConfig
from tokenizer.cli import build_parser, main
from tokenizer.cli.options import expand_config
from tokenizer.command import field_help
from tokenizer.training.adversarial import AdversarialConfig
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.bottlenecks import BottleneckConfig
from tokenizer.training.config import CropTrainingConfig
from tokenizer.training.decoder import FinetuneConfig
from tokenizer.training.quantizer import FitConfig
from tokenizer.training.reconstruction import ReconstructionConfig

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "train.md"
CONFIGS = (
    CropTrainingConfig, ReconstructionConfig, AdversarialConfig, Augmentation, LappedConfig,
    BottleneckConfig, FitConfig, FinetuneConfig,
)  # fmt: skip


def table_row(config, field) -> str:
    default = "" if field.default is MISSING else field.default
    if isinstance(default, tuple):
        default = list(default)
    shown = json.dumps(default) if default != "" else ""
    return f"| `{field.name}` | {field_help(config)[field.name]} | {shown} |"


def actions(command: str) -> list[argparse.Action]:
    parser = build_parser(command)
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices[command]._actions


@pytest.mark.parametrize("config", CONFIGS)
def test_the_docs_list_every_key(config):
    page = PAGE.read_text()
    rows = [table_row(config, field) for field in fields(config)]
    missing = [row for row in rows if row not in page]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("command", ["train", "fit", "finetune"])
def test_help_fits_a_screen_and_explains_each_option(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 50
    page = PAGE.read_text()
    for action in actions(command):
        assert action.help
        if action.help == argparse.SUPPRESS:
            assert f"`{action.dest}`" in page, action.dest
        # What may be left out has a default, in its help or in the title of its group.
        elif action.option_strings and not action.required and action.dest != "help":
            preset = action.default is None and action.dest not in ("init", "bottleneck")
            assert preset or "default: " in action.help or action.dest == "config", action.dest


def test_a_file_holds_options_that_the_command_line_overrides(tmp_path):
    toml = tmp_path / "a.toml"
    toml.write_text("steps = 7\nbatch-size = 3\nnoise_range = [-0.5, 0.5]\nlearning_rate = 0.1\n")
    words = ["train", "audio", "--config", str(toml), "--out", "x", "--steps", "9"]
    options = build_parser("train").parse_args(expand_config(words))
    assert (options.steps, options.batch_size, options.learning_rate) == (9, 3, 0.1)
    assert options.noise_range == [-0.5, 0.5]
    assert (options.audio, str(options.out)) == ("audio", "x")
    same = tmp_path / "a.json"
    same.write_text(json.dumps({"continue_finetuned": True, "steps": 7, "lookahead": None}))
    words = ["finetune", "m", "audio", f"--config={same}", "--out", "x"]
    options = build_parser("finetune").parse_args(expand_config(words))
    assert (options.continue_finetuned, options.steps) == (True, 7)


@pytest.mark.parametrize(
    ("text", "part"), [("steps = ", "a.toml"), ("[training]\nsteps = 3\n", "training"), ("", "")]
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, capsys, text, part):
    path = tmp_path / "a.toml"
    if text:
        path.write_text(text)
    assert main(["train", str(tmp_path), "--out", "x", "--config", str(path)]) == 2
    assert part in capsys.readouterr().err


def test_unknown_keys_and_bad_values_are_refused(tmp_path, capsys):
    path = tmp_path / "a.toml"
    command = ["train", str(tmp_path), "--out", str(tmp_path / "x"), "--config", str(path)]
    path.write_text("stepps = 3\n")
    with pytest.raises(SystemExit):
        main(command)
    assert "--stepps" in capsys.readouterr().err
    path.write_text(f"gradient_clip = nan\nsampling_rate = {RATE}\n")
    assert main(command) == 2
    assert "gradient_clip" in capsys.readouterr().err
