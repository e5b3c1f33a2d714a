import importlib.util
import sys
from pathlib import Path

import pytest
from models import tone

from tokenizer import load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.cli import main as latok

RECIPE = Path(__file__).parents[2] / "examples" / "train_bundled_model.py"


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        ("base", [*2 * ["train"], "fit", "train", "fit", *2 * ["finetune"]]),
        ("compact", ["train", "fit", *2 * ["finetune"]]),
    ],
)
def test_the_recipe_trains_and_goes_on_where_it_was(model, trained, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("train_bundled_model", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    stages = []

    def run(*arguments):
        stages.append(arguments[0])
        assert latok([str(a) for a in arguments]) == 0

    monkeypatch.setattr(recipe, "latok", run)
    (tmp_path / "audio").mkdir()
    for i in range(3):
        write_audio(tmp_path / f"audio/{i}.wav", tone(2.0, rate=16_000, seed=i), 16_000)
    out = tmp_path / "out"
    command = ["recipe", tmp_path / "audio", "--out", out, "--budget", "rehearsal"]
    command += ["--model", model]
    # A process has one precision, and other tests have trained in this one.
    command += ["--mixed-precision", "no"]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--held-out", str(tmp_path / "audio")])
    recipe.main()
    assert stages == [*trained, "export", "evaluate"]
    assert load_tokenizer(out / "model").num_codebooks == 4
    assert "| 0.00 | 4 |" in (out / "curve.md").read_text()
    assert (out / "curve.png").stat().st_size > 1000
    assert "4 codebooks" in capsys.readouterr().out
    recipe.main()
    assert stages[len(trained) + 2 :] == ["evaluate"]


def test_every_budget_is_a_command_line_that_the_stages_take(tmp_path):
    from tokenizer.cli import build_parser

    spec = importlib.util.spec_from_file_location("train_bundled_model", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    for budgets, shared, commands in recipe.MODELS.values():
        for stage, words in (item for budget in budgets.values() for item in budget.items()):
            command, *given = commands[stage].split()
            line = [command, *given, "audio", "--out", str(tmp_path)]
            line += f"{shared[stage]} {words}".split()
            options = build_parser(command).parse_args(line)
            assert options.out == tmp_path
