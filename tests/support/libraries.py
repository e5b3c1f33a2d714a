"""Small models of other libraries, with random weights that pass a signal."""

from __future__ import annotations

import warnings

import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import AutoencoderOobleck

CASES = {
    "dac": (DacModel, {"downsampling_ratios": [2, 4]}),
    "dac-odd": (DacModel, {"downsampling_ratios": [2, 3, 5]}),
    "oobleck": (AutoencoderOobleck, {"downsampling_ratios": [2, 4], "channel_multiples": [1, 2]}),
    "oobleck-odd": (
        AutoencoderOobleck,
        {"downsampling_ratios": [3, 2], "channel_multiples": [2, 1], "audio_channels": 1},
    ),
    "encodec": (EncodecModel, {"upsampling_ratios": [3, 2]}),
    "encodec-48": (
        EncodecModel,
        {
            "upsampling_ratios": [4, 2],
            "audio_channels": 2,
            "normalize": True,
            "norm_type": "time_group_norm",
            "use_causal_conv": False,
            "chunk_length_s": 1.0,
            "overlap": 0.01,
        },
    ),
}


def make_library_model(name: str) -> torch.nn.Module:
    model_class, options = CASES[name]
    torch.manual_seed(0)
    if model_class is DacModel:
        small = {"encoder_hidden_size": 3, "decoder_hidden_size": 24, "n_codebooks": 1}
        model = DacModel(DacConfig(**small, codebook_size=16, sampling_rate=8000, **options))
    elif model_class is EncodecModel:
        small = {"num_filters": 4, "hidden_size": 6, "codebook_size": 16, "sampling_rate": 8000}
        model = EncodecModel(EncodecConfig(**small, **options))
    else:
        small = {"encoder_hidden_size": 8, "decoder_input_channels": 4, "decoder_channels": 4}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = AutoencoderOobleck(**small, sampling_rate=8000, **options)
    # Freshly made, some of them hardly pass a signal, and all activations are alike.
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith((".alpha", ".beta")):
                value.add_(0.3 * torch.rand_like(value))
            elif model_class is DacModel and value.ndim == 3:
                value.normal_(std=0.7 * (value.shape[1] * value.shape[2]) ** -0.5)
    return model.eval()
