"""Audio to codes and back a chunk at a time, with the codes and samples of the whole.

    encoder = tok.stream_encoder(gain=0.1)
    decoder = tok.stream_decoder(gain=0.1)
    for chunk in microphone:                    # [n] or [C, n], any n
        play(decoder.push(encoder.push(chunk)))
    play(decoder.push(encoder.finish()))
    play(decoder.finish())

Both give what they have as soon as the network has seen what it needs to (`latency`), so a chunk
may bring nothing or much. Their state is bounded.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from tokenizer.audio import Resampler, as_block, check_rate
from tokenizer.errors import InputError, StateError
from tokenizer.model.parts import DecoderName
from tokenizer.model.rows import apply_gain, code_dtype, normalized
from tokenizer.model.tensors import TensorTokenizer, check_finite
from tokenizer.model.tiling import Pieces, decoder_pieces, encoder_pieces, lookahead
from tokenizer.precision import full_float32, networks_in

_FINISHED = "This stream is finished: start another one."


class StreamEncoder:
    """Audio in chunks of any size to codes or latents; `LatentTokenizer.stream_encoder` makes one.

    Attributes:
        gain: Float32 ``[C]``: what the audio is divided by.
        num_samples: Samples of each channel so far, at the tokenizer's rate.
        latency: Seconds from the first sample of a frame to the frame, without computing time.
            Resampling adds some milliseconds.
    """

    def __init__(
        self,
        tokenizer: TensorTokenizer,
        gain: Float32[np.ndarray, " C"],
        sampling_rate: int,
        n_codebooks: int | None,
    ) -> None:
        """Starts a stream; without ``n_codebooks`` it gives latents. Weights must not change."""
        self.gain, self.num_samples = gain, 0
        self._tokenizer, self._n_codebooks = tokenizer, n_codebooks
        rate = check_rate(sampling_rate)
        self._resampler = Resampler(rate, tokenizer.sampling_rate, len(gain))
        self._pieces = encoder_pieces(tokenizer.autoencoder, eager=True)
        self._finished = False
        ahead = lookahead(tokenizer.autoencoder.encoder, tokenizer.hop_length)
        self.latency = float("inf") if ahead is None else (ahead + 1) / tokenizer.frame_rate

    def push(self, chunk: np.ndarray | Tensor) -> np.ndarray:
        """Takes the next samples, floats ``[n]`` or ``[C, n]``, any n.

        Returns:
            Frames that are complete now, perhaps none: codes ``[G, t, n]`` (int16 or int32) or
            latents ``[G, t, D]`` (float32). A group is a channel, of stereo models two.

        Raises:
            ValueError: If the chunk has another shape or type, or samples that are not finite.
            RuntimeError: After `finish`.
        """
        if self._finished:
            raise StateError(_FINISHED)
        x = chunk if isinstance(chunk, Tensor) else np.asarray(chunk)
        block = as_block(x[None] if x.ndim == 1 else x, len(self.gain), "A chunk")
        return self._advance(self._resampler.push(block), final=False)

    def finish(self) -> np.ndarray:
        """Ends the stream and returns the frames that are left; ValueError if it had no samples."""
        if self._finished:
            raise StateError(_FINISHED)
        out = self._advance(self._resampler.finish(), final=True)
        self._finished = True
        return out

    @full_float32()
    def _advance(self, block: np.ndarray, *, final: bool) -> np.ndarray:
        self.num_samples += block.shape[-1]
        if final and self.num_samples == 0:
            raise InputError("The stream held no samples: there is nothing to encode.")
        tokenizer, n = self._tokenizer, self._n_codebooks
        with torch.inference_mode(), networks_in(tokenizer.network_dtype, tokenizer.device):
            z = self._pieces.push(normalized(tokenizer, block, self.gain), final=final)
            z = check_finite(z, "The stream's latents")
            if n is None:
                return z.transpose(1, 2).cpu().numpy()
            dtype = code_dtype(tokenizer.codebook_sizes)
            if z.shape[-1] == 0:
                return np.zeros((len(z), 0, n), dtype=dtype)
            return tokenizer.quantize(z, n).transpose(1, 2).cpu().numpy().astype(dtype)


class StreamDecoder:
    """Codes or latents in chunks of any size to audio; `LatentTokenizer.stream_decoder` makes one.

    Attributes:
        gain: Float32 ``[C]``: what the audio is multiplied by.
        num_samples: Samples of each channel so far.
        latency: Seconds from a frame to the first of its samples, without computing time.
    """

    def __init__(
        self,
        tokenizer: TensorTokenizer,
        gain: Float32[np.ndarray, " C"],
        decoder: DecoderName,
        latents: bool,
    ) -> None:
        """Starts a stream of codes, or of latents. Weights must not change meanwhile."""
        self.gain, self.num_samples = gain, 0
        self._tokenizer, self._latents = tokenizer, latents
        self._decoder = tokenizer.decoder(decoder)
        self._groups = -(-len(gain) // tokenizer.autoencoder.num_channels)
        self._pieces: Pieces | None = None
        self._n_codebooks: int | None = None
        self._finished = False
        ahead = lookahead(self._decoder, tokenizer.hop_length)
        self.latency = float("inf") if ahead is None else ahead / tokenizer.frame_rate

    def push(self, frames: np.ndarray | Tensor) -> Float32[np.ndarray, "C n"]:
        """Takes the next frames: ``[G, t, n]`` as `StreamEncoder` gives them, or ``[t, n]``.

        The first frames with codes decide the number of codebooks.

        Returns:
            Samples that are complete now, perhaps none.

        Raises:
            ValueError: If frames have another shape, codes are out of range or latents not finite.
            RuntimeError: After `finish`.
        """
        if self._finished:
            raise StateError(_FINISHED)
        x = torch.as_tensor(frames)
        x = x[None] if x.ndim == 2 else x
        # The tokenizer says what is wrong with latents.
        width = None if self._latents else self._n_codebooks
        if x.ndim != 3 or len(x) != self._groups or x.shape[2] != (width or x.shape[2]):
            wanted = f"[{self._groups}, t, {width or 'n'}]"
            raise InputError(f"Frames have shape {list(x.shape)}; expected {wanted}.")
        if x.is_floating_point() != self._latents:
            wanted = "latents, which are floats" if self._latents else "codes, which are integers"
            raise InputError(f"Frames are {x.dtype}; this stream takes {wanted}.")
        if x.shape[1] == 0:
            return np.zeros((len(self.gain), 0), dtype=np.float32)
        with torch.inference_mode():
            if self._latents:
                z = check_finite(self._tokenizer.pad_detail(x.transpose(1, 2)), "Latents")
            else:
                z = self._tokenizer.dequantize(x.long().transpose(1, 2))
                self._n_codebooks = x.shape[2]
            return self._advance(z, final=False)

    def finish(self) -> Float32[np.ndarray, "C n"]:
        """Ends the stream and returns the samples that are left; ValueError if it had no frames.

        Together they are as many as all frames cover; the audio that was encoded may have been
        shorter by up to a frame: see `StreamEncoder.num_samples`.
        """
        if self._finished:
            raise StateError(_FINISHED)
        if self._pieces is None:
            raise InputError("The stream held no frames: there is nothing to decode.")
        tokenizer = self._tokenizer
        nothing = torch.zeros(self._groups, tokenizer.latent_dim, 0, device=tokenizer.device)
        with torch.inference_mode():
            out = self._advance(nothing, final=True)
        self._finished = True
        return out

    @full_float32()
    def _advance(self, z: Tensor, *, final: bool) -> np.ndarray:
        if self._pieces is None:
            level = self._tokenizer.noise_level(self._n_codebooks)
            model = self._tokenizer.autoencoder
            self._pieces = decoder_pieces(model, self._decoder, level, eager=True)
        audio = self._pieces.push(z, final=final).flatten(0, 1)[: len(self.gain)]
        self.num_samples += audio.shape[-1]
        return apply_gain(audio.cpu().numpy(), self.gain)
