"""`latok train` of other libraries' autoencoders: what is refused, and what the options build."""

import argparse
from itertools import pairwise

import pytest
from libraries import CASES, saved

from tokenizer.cli import build_parser, main
from tokenizer.cli.options import expand_config
from tokenizer.cli.starting import first_autoencoder

FIELDS = "sampling_rate=8000,encoder_hidden_size=4,hidden_size=6,downsampling_ratios=[2,4]"


def options(*words: object) -> argparse.Namespace:
    command = ["train", "audio", "--out", "x", *map(str, words)]
    return build_parser("train").parse_args(expand_config(command))


def test_a_flag_and_a_table_build_the_same_model(tmp_path):
    flag = first_autoencoder(options("--autoencoder", f"dac:{FIELDS},decoder_hidden_size=8"))
    assert (flag.sampling_rate, flag.hop_length, flag.latent_dim) == (8000, 8, 6)
    path = tmp_path / "a.toml"
    table = (
        FIELDS.replace("],", "]\n").replace(",e", "\ne").replace(",h", "\nh").replace(",d", "\nd")
    )
    path.write_text(f'[autoencoder]\nkind = "dac"\n{table}\ndecoder_hidden_size = 8\n')
    table = first_autoencoder(options("--config", path))
    assert table.to_config() == flag.to_config()
    weights, same = flag.state_dict(), table.state_dict()  # drawn from --seed
    assert all(weights[name].equal(same[name]) for name in weights)


def test_init_takes_the_sizes_of_its_model(tmp_path):
    folder = saved(tmp_path, "oobleck")
    model = first_autoencoder(options("--init", folder, "--sampling-rate", 8000))
    assert (model.kind, model.num_channels, model.hop_length) == ("oobleck", 2, 8)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--autoencoder", "sox"), ("'sox'", "oobleck")),
        (("--autoencoder", "dac:width=3"), ("'width'", "encoder_hidden_size")),
        (("--autoencoder", "dac:sampling_rate"), ("'sampling_rate'", "KIND:OPTION=VALUE")),
        (("--autoencoder", "dac", "--latent-dim", 4), ("--latent-dim", "FIELD=VALUE")),
        (("--autoencoder", "dac", "--preset", "tiny"), ("--preset", "FIELD=VALUE")),
        (
            ("--autoencoder", "oobleck:encoder_hidden_size=8,decoder_channels=4"),
            ("encoder_hidden_size=8", "64"),
        ),
        (("--autoencoder", "dac", "--init", "oobleck"), ("--autoencoder", "--init")),
        (("--init", "oobleck", "--latent-dim", 7), ("latent_dim 4", "7")),
        (("--init", "nowhere"), ("nowhere",)),
        (("--bottleneck", "kl", "--preset", "tiny"), ("lapped", "noise_range")),
        (("--bottleneck", "kl", "--init", "dac"), ("dac", "noise_range")),
        (("--bottleneck", "kl", "--init", "oobleck", "--kl-weight", -1), ("kl_weight", "-1")),
        (("--bottleneck", "kl", "--init-quantizer", "x"), ("--init-quantizer", "rvq")),
    ],
)
def test_what_contradicts_itself_is_one_line(words, parts, tmp_path, audio, capsys):
    filled = [
        saved(tmp_path, word) if before == "--init" and word in CASES else word
        for before, word in pairwise(("", *words))
    ]
    assert main(["train", str(audio), "--out", str(tmp_path / "x"), *map(str, filled)]) == 2
    error = capsys.readouterr().err.rpartition("latok: ")[2]  # after the libraries' bars
    assert error.count("\n") == 1
    assert all(part in error for part in parts), error
