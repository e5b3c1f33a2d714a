"""End-to-end baselines: quantizer and autoencoder trained together, on stage 1's budget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.devices import send
from tokenizer.errors import InputError
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.sources import TensorSource
from tokenizer.saving import whole_folder
from tokenizer.training.autoencoder import initialize
from tokenizer.training.bottlenecks import (
    Bottleneck,
    BottleneckConfig,
    make_bottleneck,
    make_quantizer,
)
from tokenizer.training.checkpoint import weights_digest
from tokenizer.training.clips import Clip
from tokenizer.training.crops import CropDataset
from tokenizer.training.processes import num_processes
from tokenizer.training.quantizer import FitConfig, cache_latents, set_statistics
from tokenizer.training.reconstruction import (
    Audio,
    CropRun,
    PaddedAudio,
    Reconstruction,
    ReconstructionTask,
    crop_target,
    draw_uniform,
    noise_places,
    spread_numbers,
)

# Latents that the quantizer is fitted to before training, and measured on afterwards.
_INITIAL_FRAMES = 20_000
_MEASURED_FRAMES = 200_000


class QuantizedAutoencoder(nn.Module):
    """Encoder, bottleneck, decoder."""

    def __init__(self, encoder: Encoder, bottleneck: Bottleneck, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder

    def forward(
        self, audio: Audio, counts: Int[Tensor, " B"], first_frame: Int[Tensor, " B"], seed: int = 0
    ) -> tuple[tuple[PaddedAudio, PaddedAudio], Float[Tensor, ""]]:
        """Audio (`Decoder.parts`) from each item's first ``counts`` codebooks; commitment loss."""
        quantized = self.bottleneck(self.encoder(audio), counts, seed)
        parts = self.decoder.parts(quantized.latents, quantized.noise_level, first_frame)
        return parts, quantized.commitment


class EndToEndTask(ReconstructionTask):
    """Stage 1 with a bottleneck in place of the noise."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        bottleneck: Bottleneck,
        config: BottleneckConfig,
        run: CropRun,
    ) -> None:
        module = QuantizedAutoencoder(autoencoder.encoder, bottleneck, autoencoder.decoder)
        super().__init__(module, autoencoder, run)
        self.bottleneck, self.bottleneck_config = bottleneck, config

    def reconstruct(
        self, module: nn.Module, audio: Audio, items: list[Generator], generator: Generator
    ) -> Reconstruction:
        """With each item's own number of codebooks."""
        draw = torch.tensor(draw_uniform(items))
        counts = send(self.bottleneck_config.counts(draw), audio.device)
        seed = int(torch.randint(2**31, (), generator=generator))
        places = noise_places(items, audio.device)
        estimate, commitment = module(audio, counts, places, seed)
        perplexity = self.bottleneck.perplexity()
        figures = {
            "commitment": commitment,
            "perplexity": perplexity.mean(),
            "least_perplexity": perplexity.min(),
        }
        penalty = self.bottleneck_config.commitment_weight * commitment
        return Reconstruction(estimate, penalty, figures)

    def estimates(
        self, module: nn.Module, audio: Audio, items: list[Generator]
    ) -> Iterator[tuple[str, PaddedAudio]]:
        """From some and all codebooks, and from 0, exact latents, where they are trained on."""
        del items
        exact = [0] if self.bottleneck_config.exact_share > 0 else []
        first = torch.zeros(len(audio), dtype=torch.int64, device=audio.device)
        for n in exact + spread_numbers(self.bottleneck_config.codebooks):
            yield str(n), module(audio, torch.full_like(first, n), first)[0][0]


def take_over(quantizer: Quantizer, fitted: Quantizer) -> None:
    """Gives a quantizer what another one of its form was fitted to."""
    form = ("kind", "dim", "num_codebooks", "codebook_size", "codebook_dim", "standardization")
    ours, theirs = ({"kind": q.kind, **q.to_config()} for q in (quantizer, fitted))
    for name in form:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"Cannot begin from a quantizer with {name} {theirs.get(name)!r}: this bottleneck "
                f"has {ours.get(name)!r}. Give it the same, or begin without a quantizer."
            )
    quantizer.load_state_dict(fitted.state_dict())


@torch.no_grad()
def crop_latents(autoencoder: Autoencoder, crops: CropDataset, num_frames: int) -> TensorSource:
    """Latents of the first crops, at least so many frames of them."""
    autoencoder.encoder.eval()
    latents: list[Tensor] = []
    for index in range(-(-num_frames // autoencoder.num_frames(crops.crop_length))):
        audio, scale = crop_target(autoencoder, {k: v[None] for k, v in crops[index].items()})
        latents.append(autoencoder.encoder(audio / scale)[0].T)
    return TensorSource(torch.cat(latents))


def train_end_to_end(
    autoencoder: Autoencoder,
    clips: list[Clip],
    out: Path,
    *,
    kind: str,
    config: BottleneckConfig,
    pretrained: bool = False,
    start: Quantizer | None = None,
    **settings: Any,
) -> LatentTokenizer:
    """Trains autoencoder and quantizer together; resumes from ``out`` if it holds a checkpoint.

    Crops, losses, optimizer and schedule are those of `train_autoencoder` with the same arguments;
    only the bottleneck stands where the noise was.

    Args:
        autoencoder: The model to train, in place.
        clips: Training audio.
        out: Folder of the run.
        kind: "rvq", "factorized" or "rfsq".
        config: Sizes of the quantizer, and how it is trained.
        pretrained: As in `train_autoencoder`.
        start: A fitted quantizer of the same kind and sizes to begin from, such as the one fitted
            to the autoencoder as it is; None fits one to the latents of the first crops.
        settings: The other attributes of `CropRun`; the latent noise is not used.

    Returns:
        A tokenizer with the trained quantizer, measured on the clips. Its continuous decoder is the
        one that was trained; there is no other.

    Raises:
        ValueError: If ``start`` is of another kind or other sizes.
    """
    detail = autoencoder.latent_dim - autoencoder.coded_dim
    if detail:
        raise InputError(
            f"detail_dim is {detail}: a bottleneck in training codes all "
            "latents. Add detail afterwards (docs/end-to-end.md), or train without a bottleneck."
        )
    run = CropRun(clips, out, **settings)
    crops = run.crops(autoencoder.sampling_rate, num_channels=autoencoder.num_channels)[0]
    loop = run.loop
    quantizer = make_quantizer(kind, autoencoder.latent_dim, config)
    begin = (autoencoder if pretrained else None, start)
    digests = [None if module is None else weights_digest(module) for module in begin]
    if whole_folder(out / "checkpoint") is None:
        if not pretrained:
            initialize(autoencoder, crops, run.losses.emphasis)
        if start is not None:
            take_over(quantizer, start)
        else:
            source = crop_latents(autoencoder, crops, _INITIAL_FRAMES)
            generator = Generator().manual_seed(loop.seed)
            quantizer.fit(source, generator=generator, progress=run.progress)
    bottleneck = make_bottleneck(
        quantizer,
        config,
        frames=loop.batch_size * num_processes() * autoencoder.num_frames(crops.crop_length),
        synchronize=num_processes() > 1,
    )
    EndToEndTask(autoencoder, bottleneck, config, run).train(
        autoencoder=autoencoder.to_config(),
        bottleneck={"kind": kind, **asdict(config)},
        start=digests,
    )
    bottleneck.write_to(quantizer)
    tokenizer = LatentTokenizer.from_autoencoder(autoencoder)
    tokenizer.to(next(autoencoder.parameters()).device)  # pyright: ignore[reportArgumentType]
    # The statistics that `fit_quantizer` would give it.
    with tempfile.TemporaryDirectory(dir=out, prefix=".latents-") as folder:
        fit = FitConfig(max_frames=_MEASURED_FRAMES, seed=loop.seed)
        source = cache_latents(tokenizer, clips, Path(folder) / "latents.npy", fit)
        set_statistics(tokenizer, source)
        quantizer.measure(source, progress=run.progress)
    return tokenizer.set_quantizer(quantizer)
