"""What ``latok encode --bf16`` changes: codes, latents and quality of the bundled example.

    python -m tokenizer.benchmarks.bf16 [--model TOKENIZER] [--device cuda]

Networks of the encoder in bfloat16 beside float32; transforms, linear path and search are float32
in both. SI-SDR is that of decoded codes against the example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenizer
from tokenizer import load_tokenizer, open_audio
from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.benchmarks.machine import describe
from tokenizer.evaluation.metrics import si_sdr

_EXAMPLE = Path(tokenizer.__file__).parent / "assets" / "example.flac"


def compare(model: Any, widths: tuple[int, ...] = (1, 4)) -> list[dict[str, Any]]:
    """A line for each beam width."""
    clip = str(_EXAMPLE)
    wave = torch.from_numpy(open_audio(clip, target_rate=model.sampling_rate).read())
    lines = []
    for width in widths:
        model.quantizer.beam_width = width
        rows, latents = [], []
        for dtype in (torch.float32, torch.bfloat16):
            model.network_dtype = dtype
            rows.append(model.encode_codes(clip))
            latents.append(model.encode_latents(clip)["latents"])
        model.network_dtype = torch.float32
        equal = rows[0]["codes"] == rows[1]["codes"]
        error = np.square(latents[1] - latents[0]).mean() / np.square(latents[0]).mean()
        quality = [si_sdr(torch.from_numpy(model.decode_codes(row)), wave) for row in rows]
        lines.append(
            {
                "beam": width,
                "codes": equal.size,
                "equal %": 100 * float(equal.mean()),
                "equal in the first codebook %": 100 * float(equal[:, 0].mean()),
                "error of latents dB": 10 * float(np.log10(error)),
                "SI-SDR dB, float32": quality[0],
                "SI-SDR dB, bfloat16": quality[1],
            }
        )
    return lines


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__, "--model", "--device", "--json")
    options = parser.parse_args()
    lines = compare(load_tokenizer(options.model).to(options.device))  # pyright: ignore
    print(f"{describe(options.device)}\n\n{table(lines)}")
    write_figures(options.json, lines)


if __name__ == "__main__":
    main()
