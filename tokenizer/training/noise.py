"""Noise for the decoders of a tokenizer that was trained without it."""

from __future__ import annotations

from copy import deepcopy

import torch

from tokenizer.autoencoders.lapped.decoder import LappedDecoder
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
                decoder.shut_noise()
    return copy.eval()
