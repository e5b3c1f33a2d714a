"""A quantizer of your own, in NumPy: python examples/custom_quantizer.py [OUT [MODEL]]."""

import sys
from pathlib import Path

import numpy as np
import torch
from made_audio import audio_folder

import tokenizer
from tokenizer import LatentSource, Quantizer


def sides(x: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """On which sides of planes vectors lie, in bytes ``[M, planes / 8]``: a function to plug in."""
    # Not x @ planes.T, whose last bits depend on how many vectors there are.
    return np.packbits((x[:, None] * planes).sum(-1) > 0, axis=1)


@tokenizer.register_quantizer  # checkpoints name it by its kind
class SignQuantizer(Quantizer):
    """Each code holds the sides of eight random planes. Arguments and buffers are what is saved."""

    kind = "signs"

    def __init__(self, dim: int, num_codebooks: int) -> None:
        super().__init__(dim, codebook_sizes=[256] * num_codebooks)
        self.planes = torch.nn.Buffer(torch.zeros(8 * num_codebooks, dim))
        self.weights = torch.nn.Buffer(torch.zeros(8 * num_codebooks, dim))

    def fit(self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False):  # noqa: ANN201
        """Draws the planes, and fits the way back by least squares."""
        x = tokenizer.sample_frames(latents, 50_000, generator)
        self.planes.normal_(generator=generator)
        signs = 2.0 * np.unpackbits(sides(x.numpy(), self.planes.numpy()), axis=1) - 1
        self.weights.copy_(torch.from_numpy(np.linalg.lstsq(signs, x.numpy())[0]))
        return self.measure(latents, progress=progress)

    def encode(self, latents: torch.Tensor, n_codebooks: int | None = None) -> torch.Tensor:
        """Codes int64 ``[M, n]``."""
        x, n = self.checked_latents(latents, n_codebooks)
        return torch.from_numpy(sides(x.numpy(), self.planes[: 8 * n].numpy())).long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents float32 ``[M, D]``."""
        bits = np.unpackbits(self.checked_codes(codes).numpy().astype(np.uint8), axis=1)
        return (2.0 * torch.from_numpy(bits) - 1) @ self.weights[: bits.shape[1]]


if __name__ == "__main__":
    out = Path((sys.argv[1:] or ["example/custom"])[0])
    tok = tokenizer.load_tokenizer(*sys.argv[2:])
    files = sorted(audio_folder(None, out).rglob("*.wav"))
    latents = torch.cat([torch.from_numpy(tok.encode_latents(f)["latents"]) for f in files])
    quantizer = SignQuantizer(tok.latent_dim, num_codebooks=16)
    quantizer.fit(tokenizer.TensorSource(latents), generator=torch.Generator().manual_seed(0))
    tok.set_quantizer(quantizer).save_pretrained(out / "tokenizer")
    tok = tokenizer.load_tokenizer(out / "tokenizer")
    row = tok.encode_codes(files[0])
    tokenizer.write_audio(out / "decoded.wav", tok.decode_codes(row), tok.sampling_rate)
