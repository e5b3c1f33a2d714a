"""One tokenizer, two families of models: codes and latents become audio, each by its decoder.

python examples/decode_generations.py example/lm example/diffusion --out example/clips
"""

import argparse
from pathlib import Path

import torch

from generative import load_run, make_request
from tokenizer import write_audio

parser = argparse.ArgumentParser()
parser.add_argument("lm", help="run of train_lm_on_codes.py")
parser.add_argument("diffusion", help="run of train_diffusion_on_latents.py")
parser.add_argument("--out", type=Path, default=Path("example/clips"))
parser.add_argument("--seconds", type=float, default=3.0)
options = parser.parse_args()

language_model, tokenizer, run = load_run(options.lm)
diffusion, _, _ = load_run(options.diffusion)
label = language_model.labels[0] if language_model.labels else None
request = make_request(
    tokenizer, options.seconds, labels=[label], n_codebooks=run["n_codebooks"], guidance_scale=2.0
)

codes = language_model.generate_rows(request, torch.Generator().manual_seed(0))[0]
latents = diffusion.generate_rows(request, torch.Generator().manual_seed(0))[0]
found = {
    "codes": tokenizer.decode_codes(codes),  # the decoder finetuned for codes
    "latents": tokenizer.decode_latents(latents),  # the continuous decoder
    # Generated latents may be rounded to codes as well: then they take the codes' decoder.
    "latents-as-codes": tokenizer.decode_codes(tokenizer.latents_to_codes(latents)),
}
options.out.mkdir(parents=True, exist_ok=True)
for name, audio in found.items():
    write_audio(options.out / f"{name}.wav", audio, tokenizer.sampling_rate)
    print(options.out / f"{name}.wav", audio.shape)
