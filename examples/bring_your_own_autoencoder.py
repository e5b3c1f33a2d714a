"""Codes from an autoencoder you have: fit a quantizer to its latents, no retraining.

    python examples/bring_your_own_autoencoder.py --autoencoder stable-audio/vae --audio FOLDER

Without ``--autoencoder`` it takes a small Oobleck with random weights, to show the way: what comes
back sounds accordingly. On the command line the same is ``latok fit AUTOENCODER AUDIO --out DIR``.
"""

import argparse
from pathlib import Path

import torch
from made_audio import audio_folder

from tokenizer import LatentTokenizer, ResidualVectorQuantizer, load_tokenizer, write_audio
from tokenizer.autoencoders.adapter import OobleckAutoencoder
from tokenizer.quantizers.sources import TensorSource

parser = argparse.ArgumentParser()
parser.add_argument("--autoencoder", help="folder or hub id of a diffusers AutoencoderOobleck")
parser.add_argument("--audio", type=Path, help="folder of WAV files; default: made on the fly")
parser.add_argument("--out", type=Path, default=Path("example/own"))
options = parser.parse_args()

if options.autoencoder:
    autoencoder = OobleckAutoencoder.from_pretrained(options.autoencoder)
else:
    from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck

    torch.manual_seed(0)
    small = AutoencoderOobleck(
        encoder_hidden_size=16,
        decoder_channels=8,
        decoder_input_channels=8,
        downsampling_ratios=[4, 4, 4],
        channel_multiples=[1, 2, 4],
        audio_channels=1,
        sampling_rate=16_000,
    )
    autoencoder = OobleckAutoencoder(small.eval())
tokenizer = LatentTokenizer.from_autoencoder(autoencoder)

# Latents of some clips are all that a quantizer is fitted to.
files = sorted(audio_folder(options.audio, options.out).rglob("*.wav"))
latents = torch.cat([torch.from_numpy(tokenizer.encode_latents(f)["latents"]) for f in files])
quantizer = ResidualVectorQuantizer(
    tokenizer.latent_dim, num_codebooks=4, codebook_size=64, standardization="channel"
)
quantizer.fit(TensorSource(latents), generator=torch.Generator().manual_seed(0))
tokenizer.set_quantizer(quantizer)
tokenizer.latents_mean.copy_(latents.mean(0))
tokenizer.latents_std.copy_(latents.std(0).clamp(min=1e-6))
tokenizer.save_pretrained(options.out / "tokenizer")

tokenizer = load_tokenizer(options.out / "tokenizer")
row = tokenizer.encode_codes(files[0])
print(f"{row['codes'].shape[0]} frames of {tokenizer.num_codebooks} codes,", end=" ")
print(f"{tokenizer.bitrate() / 1000:.1f} kbit/s")
audio = tokenizer.decode_codes(row)
assert audio.shape[-1] == row["num_samples"]
write_audio(options.out / "decoded.wav", audio, tokenizer.sampling_rate)
