"""Detail: latents that a trained tokenizer gets in addition, for exact latents only.

Codes want few dimensions, since a quantizer spends bits on all of them; exact latents want many.
Detail serves both: encoder, quantizer and what codes sound like stay as they are, and exact latents
carry more of the waveform.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.autoencoders.lapped.stereo import coefficients
from tokenizer.errors import InputError
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.networks.layers import copy_common
from tokenizer.training.augmentation import Augmentation
from tokenizer.training.clips import Clip
from tokenizer.training.crops import CropDataset

_NUM_CROPS, _CROP_SECONDS = 400, 1.5
# What is added to the coefficients' covariance, relative to its mean: bins that are always silent
# would make it singular.
_RIDGE = 1e-6


def add_detail(
    tokenizer: LatentTokenizer, clips: list[Clip], count: int, *, seed: int
) -> LatentTokenizer:
    """A copy of a tokenizer whose latents end with ``count`` numbers that codes leave out.

    They are the principal components of what the continuous decoder loses, as far as they can be
    predicted linearly from the audio's MDCT. As in `tokenizer.autoencoders.lapped.paths` each has
    the square root of its component's deviation. The decoder only has their linear path, and has to
    be finetuned (`tokenizer.training.decoder`); the finetuned decoder does not hear them.

    Statistics come from 400 random crops of 1.5 s.

    Raises:
        ValueError: If the tokenizer is no such one, or the count impossible.
    """
    autoencoder = tokenizer.autoencoder
    if not isinstance(autoencoder, LappedAutoencoder):
        raise InputError(f"Detail needs the bundled family, not {autoencoder.kind!r}.")
    if autoencoder.config.detail_dim:
        raise InputError(
            f"detail_dim is {autoencoder.config.detail_dim}: detail can be added where it is 0."
        )
    latent_dim = autoencoder.latent_dim + count
    num_coefficients = autoencoder.num_channels * autoencoder.hop_length
    if count < 1 or latent_dim > num_coefficients:
        raise InputError(
            f"detail_dim={count} beside {autoencoder.latent_dim} latents: it must be positive, and "
            f"all together at most {num_coefficients}, as many as there are coefficients."
        )
    crops = CropDataset(
        clips,
        sampling_rate=autoencoder.sampling_rate,
        crop_length=round(_CROP_SECONDS * autoencoder.sampling_rate),
        augmentation=Augmentation(),
        seed=seed,
        length=_NUM_CROPS,
        num_channels=autoencoder.num_channels,
    )
    analysis, synthesis, mean, std = _analyse(autoencoder, crops, count)
    config = deepcopy(tokenizer.config)
    assert isinstance(config, LatentTokenizerConfig)
    sizes = {"latent_dim": latent_dim, "detail_dim": count}
    config.autoencoder = {**(config.autoencoder or {}), **sizes}
    with torch.random.fork_rng(devices=[]):
        found = LatentTokenizer(config)
    copy_common(tokenizer, found)
    assert isinstance(found.autoencoder, LappedAutoencoder)
    encoder, decoder = found.autoencoder.encoder, found.autoencoder.decoder
    with torch.no_grad():
        encoder.linear.weight[-count:] = analysis * encoder.latent_scale
        decoder.linear.weight[:, -count:] = synthesis
        found.latents_mean[-count:] = mean
        found.latents_std[-count:] = std
    return found.eval()


@torch.no_grad()
def _analyse(
    autoencoder: LappedAutoencoder, crops: CropDataset, count: int
) -> tuple[Float[Tensor, "E M"], Float[Tensor, "M E"], Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Rows of the encoder's linear path, columns of the decoder's, mean and deviation of detail."""
    encoder, decoder, hop = autoencoder.encoder, autoencoder.decoder, autoencoder.hop_length
    device, size = decoder.linear.weight.device, autoencoder.num_channels * hop
    own = cross = torch.zeros(size, size, dtype=torch.float64, device=device)
    mean = torch.zeros(size, dtype=torch.float64, device=device)
    energy = torch.zeros(autoencoder.latent_dim, dtype=torch.float64, device=device)
    frames = 0
    autoencoder.eval()
    for item in (crops[index] for index in range(len(crops))):
        audio = (item["audio"] / item["gain"]).to(device)[None]
        z = encoder(audio)
        lost = audio - decoder(z)[..., : audio.shape[-1]]
        # The crop's edges are those of a window: the first and last frame tell little of audio.
        c, error = (coefficients(x, hop)[0, 1:-1].double() for x in (audio, lost))
        own, cross = own + c.T @ c, cross + error.T @ c
        mean, energy = mean + c.sum(0), energy + z[0].double().square().sum(1)
        frames += len(c)
    own, cross, mean = own / frames, cross / frames, mean / frames
    ridge = _RIDGE * own.diagonal().mean() * torch.eye(size, dtype=own.dtype, device=device)
    predicted = torch.linalg.solve(own + ridge, cross.T).T
    values, vectors = torch.linalg.eigh(predicted @ cross.T)
    basis = vectors.flip(-1)[:, :count].T
    deviation = values.flip(-1)[:count].clamp(min=1e-12).sqrt()
    # Latents' deviation over the root of what they stand for: as it is in the latents that are
    # there, the first of which are mostly waveform.
    reach = decoder.linear.weight.double().square().sum(0).sqrt()
    share = ((energy / frames).sqrt() / reach.clamp(min=1e-12)).sqrt()
    first = autoencoder.latent_dim - autoencoder.config.envelope_dim
    scale = share[:first].median() / deviation.sqrt()
    analysis = scale[:, None] * (basis @ predicted)
    variance = ((analysis @ own) * analysis).sum(1) - (analysis @ mean).square()
    return (
        analysis.float(),
        (basis.T / scale).float(),
        (analysis @ mean).float(),
        variance.clamp(min=1e-12).sqrt().float(),
    )
