"""Noise for the decoders of a tokenizer that was trained without it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from tokenizer.autoencoders.lapped.decoder import FIRST_NOISE, MIN_GATE, LappedDecoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.errors import InputError
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.latent_tokenizer import LatentTokenizer
from tokenizer.networks.layers import copy_common


@torch.no_grad()
def add_decoder_noise(tokenizer: LatentTokenizer) -> LatentTokenizer:
    """A copy of a tokenizer whose decoders can add noise, but do not yet: it sounds as before.

    `tokenizer.training.decoder.finetune_decoder` opens the noise of the decoder that it trains.
    Encoder and codes stay as they are. Where decoders add noise already, the copy's do too.

    Raises:
        ValueError: If the tokenizer is not of the bundled family.
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
        for decoder in (copy.autoencoder.decoder, copy.finetuned_decoder):
            if isinstance(decoder, LappedDecoder):
                _levels(decoder).fill_(MIN_GATE)
    return copy.eval()


@torch.no_grad()
def open_noise(decoder: nn.Module) -> None:
    """Begins the noise of a decoder in which it is shut off; others stay as they are."""
    if not isinstance(decoder, LappedDecoder) or not decoder.adds_noise:
        return
    if float(_levels(decoder).max()) > MIN_GATE:
        return
    _levels(decoder).fill_(FIRST_NOISE)
    # Of the waveform that it has learned, the decoder has to find again what is no substitute for
    # noise: rows of the head are gate, magnitude, waveform and noise.
    hop = decoder.linear.out_features
    decoder.head.weight[2 * hop : 3 * hop] = 0
    decoder.head.bias[2 * hop : 3 * hop] = 0


def _levels(decoder: LappedDecoder) -> Tensor:
    """The bias of the noise's level in each bin."""
    return decoder.head.bias.detach()[-decoder.linear.out_features :]
