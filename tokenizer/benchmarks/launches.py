"""How many kernels encoding and decoding launch, and how often they wait for the device.

    python -m tokenizer.benchmarks.launches [--clips 12] [--seconds 10] [--model TOKENIZER]

A batch of clips, signals in turn as on a CPU, and together as on other devices. Counted on an
emulated device (`tokenizer.benchmarks.emulated`), so no GPU is needed. Kernels do not depend on
widths, only on the numbers of blocks, frames and codebooks: by default the model has those of
base-44khz, and is narrow and untrained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.benchmarks.counting import Launches
from tokenizer.benchmarks.emulated import EmulatedDevice
from tokenizer.model.loading import BUNDLED
from tokenizer.model.routes import Route
from tokenizer.model.validation import read_config
from tokenizer.quantizers.residual import ResidualVectorQuantizer


def narrow_model() -> Any:
    """A tokenizer with the blocks, frame rate and codebooks of base-44khz, fast on a CPU."""
    described = read_config(BUNDLED / "config.json")
    narrow = {"sampling_rate": 4000, "hop_length": 40, "latent_dim": 8, "detail_dim": 0}
    narrow |= {"envelope_dim": 2, "encoder_width": 16, "decoder_width": 16}
    config = {k: v for k, v in described["autoencoder"].items() if k != "kind"} | narrow
    tokenizer = LatentTokenizer.from_autoencoder(LappedAutoencoder.from_config(config))
    codebooks, width = (described["quantizer"][k] for k in ("num_codebooks", "beam_width"))
    quantizer = ResidualVectorQuantizer(tokenizer.coded_dim, codebooks, 64, beam_width=width)
    quantizer.codebooks.normal_(generator=torch.Generator().manual_seed(0))
    quantizer.fitted.fill_(True)
    return tokenizer.set_quantizer(quantizer)


Calls = dict[str, Callable[[], Any]]


def together(tokenizer: Any, x: Tensor) -> Calls:
    """What a batch ``[B, C, N]`` takes on the route of devices."""
    latents = tokenizer.encode(x).latents
    codes = tokenizer.quantize(latents)
    return {
        "encode": lambda: tokenizer.encode(x),
        "search": lambda: tokenizer.quantize(latents),
        "codes to latents": lambda: tokenizer.dequantize(codes),
        "decode": lambda: tokenizer.decode(latents),
    }


def in_turn(tokenizer: Any, x: Tensor) -> Calls:
    """The networks' part of the same on the route of CPUs."""
    route, level = Route(tokenizer.autoencoder), tokenizer.noise_tensor(None)
    decoder, lengths = tokenizer.autoencoder.decoder, [x.shape[-1]] * len(x)
    latents = tokenizer.encode(x).latents
    return {
        "encode": lambda: route.latents(x, lengths, None),
        "decode": lambda: route.audio(latents, decoder, level),
    }


def batch_launches(
    tokenizer: Any, clips: int, seconds: float | int, make_calls: Callable[[Any, Tensor], Calls]
) -> dict[str, Launches]:
    """Launches of each call for a batch of noise; leaves the tokenizer where it was."""
    home, generator = tokenizer.device, torch.Generator().manual_seed(0)
    shape = (clips, tokenizer.autoencoder.num_channels, round(seconds * tokenizer.sampling_rate))
    with EmulatedDevice() as device, torch.no_grad():
        x = (0.1 * torch.randn(shape, generator=generator)).to(device.name)
        calls = make_calls(tokenizer.to(device.name), x)
        found = {name: launches_of(device, call) for name, call in calls.items()}
    tokenizer.to(home)
    return found


def launches_of(device: EmulatedDevice, call: Callable[[], Any]) -> Launches:
    """Counts the second call: the first one prepares tables."""
    call()
    with device.counted() as launches:
        call()
    return launches()


def main() -> None:
    """Counts and prints the table."""
    parser = benchmark_parser(__doc__, "--model", "--seconds", "--json")
    parser.add_argument("--clips", type=int, default=12, help="of the batch")
    options = parser.parse_args()
    tokenizer = narrow_model() if options.model is None else load_tokenizer(options.model)
    lines: list[dict[str, Any]] = []
    for route in (in_turn, together):
        found = batch_launches(tokenizer, options.clips, options.seconds, route)
        where = route.__name__.replace("_", " ")
        lines += [{"call": name, "signals": where} | asdict(n) for name, n in found.items()]
    print(f"{options.clips} clips of {options.seconds:g} s\n\n{table(lines)}")
    write_figures(options.json, lines)


if __name__ == "__main__":
    main()
