"""Noise for the decoders of a tokenizer that was trained without it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tokenizer.autoencoders.lapped.model import (
    FIRST_NOISE,
    MIN_GATE,
    LappedAutoencoder,
    LappedDecoder,
)
from tokenizer.errors import InputError
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.networks.layers import copy_common


def open_noise(tokenizer: LatentTokenizer, decoder: str) -> LatentTokenizer:
    """A copy of a tokenizer one of whose decoders adds noise, from the levels of its linear path.

    It has to be finetuned (`tokenizer.training.decoder`). Encoder and codes stay as they are; the
    other decoder gets the same networks with the noise shut off, so it sounds as before. A decoder
    that adds noise already is copied as it is.

    Args:
        tokenizer: Of the bundled family.
        decoder: "finetuned", which is made if there is none, or "continuous".

    Raises:
        ValueError: If the tokenizer is of another family.
    """
    if not isinstance(tokenizer.autoencoder, LappedAutoencoder):
        raise InputError(f"Noise needs the bundled family, not {tokenizer.autoencoder.kind!r}.")
    config = deepcopy(tokenizer.config)
    assert isinstance(config, LatentTokenizerConfig)
    config.autoencoder = {**(config.autoencoder or {}), "noise": True}
    with torch.random.fork_rng(devices=[]):
        copy = LatentTokenizer(config)
    copy_common(tokenizer, copy)
    if not tokenizer.autoencoder.config.noise:
        for network in (copy.autoencoder.decoder, copy.finetuned_decoder):
            if network is not None:
                _levels(network).fill_(MIN_GATE)
    if decoder == "finetuned" and copy.finetuned_decoder is None:
        copy.add_finetuned_decoder()
    chosen = copy.decoder(decoder)
    if float(_levels(chosen).mean()) <= MIN_GATE:
        _open(chosen)
    return copy.eval()


def _levels(decoder: nn.Module) -> Tensor:
    """The bias of the noise's level."""
    assert isinstance(decoder, LappedDecoder)
    return decoder.head.bias.detach()[-decoder.linear.out_features :]


@torch.no_grad()
def _open(decoder: nn.Module) -> None:
    assert isinstance(decoder, LappedDecoder)
    _levels(decoder).fill_(FIRST_NOISE)
    # Of the waveform that it has learned, the decoder has to find again what is no substitute for
    # noise: rows of the head are gate, magnitude, waveform and noise.
    hop = decoder.linear.out_features
    decoder.head.weight[2 * hop : 3 * hop] = 0
    decoder.head.bias[2 * hop : 3 * hop] = 0
