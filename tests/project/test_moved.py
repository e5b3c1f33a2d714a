"""Import paths that were documented in earlier versions still work."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenizer._moved import MOVED

ROOT = Path(__file__).parents[2]

# Every import that the pages and examples of 0.1 showed, and the names it took.
DOCUMENTED = """
from datasets_scripts.corpora.listing import Listing
from datasets_scripts.corpora.tables import read_csv
from datasets_scripts.corpora.tree import checked_name, find_tree
from datasets_scripts.corpus import Clip, CorpusInfo, Missing
from datasets_scripts.download import locate_or_download
from generative.protocol import GenerativeModel
from tokenizer.app import AppGenerator, RunningApp, launch_app
from tokenizer.audio import MAX_RATIO, MAX_RESAMPLED, AudioSource, write_audio
from tokenizer.autoencoders import AUTOENCODERS
from tokenizer.autoencoders.lapped import LappedAutoencoder, LappedConfig, LappedEncoder
from tokenizer.autoencoders.oobleck import OobleckAutoencoder
from tokenizer.checking import MAX_NUMBER, MAX_REPEATS, check_size
from tokenizer.comparison import CompareConfig, Competitor, QuantizerSpec, compare, parse_spec
from tokenizer.comparison import comparison_markdown, read_comparison, read_specs, write_summary
from tokenizer.comparison.units import write_json
from tokenizer.core import DecoderName
from tokenizer.data import Augmentation, Clip, scan, split_clips
from tokenizer.demo import EXAMPLE
from tokenizer.evaluation import Condition, as_table, evaluate
from tokenizer.inputs import MAX_CHANNELS, open_audio
from tokenizer.loading import BUNDLED
from tokenizer.losses import MEL_BINS, MEL_WINDOWS, log_mel
from tokenizer.metrics import mel_distance, quality, si_sdr
from tokenizer.model import LatentTokenizer
from tokenizer.onnx_runner import OnnxTokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource
from tokenizer.spectral import imdct, mdct, mel_filters, stft_magnitude
from tokenizer.streaming import StreamDecoder, StreamEncoder
from tokenizer.training.adversarial import AdversarialConfig
from tokenizer.training.autoencoder import ReconstructionConfig, train_autoencoder
from tokenizer.training.decoder import FinetuneConfig, finetune_decoder
from tokenizer.training.loop import LoopConfig
from tokenizer.training.quantizer import FitConfig, fit_quantizer
"""


@pytest.fixture
def nothing_old_imported(monkeypatch):
    for name in MOVED:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("line", DOCUMENTED.split("\n")[1:-1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_documented_can_be_imported(line):
    (statement,) = ast.parse(line).body
    assert isinstance(statement, ast.ImportFrom)
    module = importlib.import_module(str(statement.module))
    for name in statement.names:
        assert hasattr(module, name.name), name.name


@pytest.mark.parametrize("old", MOVED)
@pytest.mark.usefixtures("nothing_old_imported")
def test_an_old_path_gives_what_is_at_the_new_one(old):
    new = importlib.import_module(MOVED[old])
    with pytest.warns(DeprecationWarning, match="has moved") as caught:
        module = importlib.import_module(old)
    assert any(f"{old} has moved to {MOVED[old]}" in str(warning.message) for warning in caught)
    names = [name for name, value in vars(new).items() if not name.startswith("_")]
    assert names
    assert all(getattr(module, name) is getattr(new, name) for name in names)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = module.nothing_of_this_name


@pytest.mark.slow
def test_the_warning_is_of_the_line_that_imports(tmp_path):
    script = tmp_path / "old_user.py"
    script.write_text("x = 1\nfrom tokenizer.demo import EXAMPLE\n")
    # In a process of its own: run-time checks of annotations add frames to the stack.
    done = subprocess.run(
        [sys.executable, "-W", "always", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{script}:2: DeprecationWarning: tokenizer.demo has moved" in done.stderr
