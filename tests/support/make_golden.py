"""Writes files of today's formats: ``python tests/support/make_golden.py 0.2``.

Run it once for each release, into a new folder: files of old releases are never written again.
Everything is tiny, a few kB a release.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from datasets_scripts import RowOptions, prepare_dataset
from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.codefile import CodeFileHeader, write_codes
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import TensorSource

ROOT = Path(__file__).parents[1] / "data" / "golden"
SIZES = (5, 64, 300)
KINDS = {"packed": ("packed", 1), "static": ("static", 1), "stereo": ("static", 2)}
RATE, HOP = 8000, 32


def golden_codes(groups: int, frames: int = 50) -> np.ndarray:
    """Codes ``[groups, frames, 3]`` by a formula, so that they need not be stored."""
    g, t, k = np.ogrid[:groups, :frames, : len(SIZES)]
    # Small codes are frequent, for the range coder to gain something.
    return ((t * (3 + 2 * k) + g) ** 2 % 97 * (t % 3 == 0) % np.array(SIZES)).astype(np.int32)


def golden_counts() -> np.ndarray:
    """How often codes occurred in some data, ``[3, 300]``, by a formula."""
    entries = np.arange(max(SIZES))
    return np.where(entries < np.array(SIZES)[:, None], 1 + 5000 // (1 + entries) ** 2, 0)


def golden_header(kind: str) -> CodeFileHeader:
    """The header of one of `KINDS`."""
    entropy, groups = KINDS[kind]
    gains = (0.5, 0.25)[:groups]
    return CodeFileHeader(
        "00112233445566778899aabbccddeeff", 44_100, 441, groups, SIZES, groups, gains, entropy,
        20, 50, 441 * 49 - 7,
    )  # fmt: skip


def golden_wave() -> np.ndarray:
    """A tenth of a second of audio, float32 ``[1, 800]``, exact on every machine."""
    n = np.arange(800)
    return (((n * 37) % 101 - 50) / 128 * ((n // 100) % 2)).astype(np.float32)[None]


def make_model() -> LatentTokenizer:
    """A tokenizer of a few thousand numbers."""
    torch.manual_seed(0)
    autoencoder = LappedAutoencoder(
        LappedConfig(
            sampling_rate=RATE, hop_length=HOP, latent_dim=4, encoder_width=4, encoder_depth=1,
            decoder_width=4, decoder_depth=1,
        )
    )  # fmt: skip
    autoencoder.initialize(torch.diag(torch.linspace(2, 0.01, HOP)))
    tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    quantizer = ResidualVectorQuantizer(4, 2, 8)
    latents = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    quantizer.fit(TensorSource(latents), generator=torch.Generator().manual_seed(0))
    tokenizer.set_quantizer(quantizer)
    tokenizer.add_finetuned_decoder()
    return tokenizer.eval()


def main() -> None:
    """Writes one folder."""
    out = ROOT / sys.argv[1]
    out.mkdir(parents=True)
    for kind, (_, groups) in KINDS.items():
        write_codes(out / f"{kind}.ltk", golden_codes(groups), golden_header(kind), golden_counts())
    tokenizer = make_model()
    tokenizer.save_pretrained(out / "model")
    row = tokenizer.encode_codes(golden_wave(), sampling_rate=RATE)
    expected = {
        "fingerprint": tokenizer.fingerprint,
        "codes_fingerprint": tokenizer.codes_fingerprint,
        "codes": row["codes"].tolist(),
        "gain": row["gain"].tolist(),
        "audio": [float(f"{x:.6g}") for x in tokenizer.decode_codes(row)[0]],
    }
    (out / "expected.json").write_text(json.dumps(expected) + "\n")
    with tempfile.TemporaryDirectory() as name:
        soundfile.write(Path(name) / "a.wav", golden_wave().T, RATE, subtype="FLOAT")
        options = RowOptions(codes=True, latents=True)
        prepare_dataset(
            "audiofolder", name, out / "dataset", tokenizer=out / "model", options=options
        )
    for left in ("README.md",):
        (out / "dataset" / left).unlink(missing_ok=True)
    manifest = out / "dataset/manifest.json"
    value = json.loads(manifest.read_text()) | {"root": "audio", "tokenizer": "model"}
    manifest.write_text(json.dumps(value, indent=1) + "\n")
    shutil.rmtree(out / "dataset/progress", ignore_errors=True)


if __name__ == "__main__":
    main()
