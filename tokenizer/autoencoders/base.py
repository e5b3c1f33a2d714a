"""What every autoencoder offers the tokenizer: an encoder and a decoder, both frame-local."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from tokenizer.networks.deviation import latent_deviation
from tokenizer.networks.packing import PackedNetwork
from tokenizer.networks.stepping import Stepper


class Encoder(nn.Module, ABC):
    """Turns audio into latents.

    Frame ``t`` belongs to the samples that start at ``t * hop_length``.

    Attributes:
        context: Frames of neighbouring audio that one latent frame depends on, on either side;
            ``None`` if it depends on the whole signal (recurrent networks), which rules out tiles.
        lookahead: Frames after its own that it depends on, if these are fewer than ``context``.
            Needed by those with a `stepper`.
    """

    context: int | None
    lookahead: int | None = None

    @abstractmethod
    def forward(self, audio: Float[Tensor, "B C N"]) -> Float[Tensor, "B D T"]:
        """Encodes audio of any length N >= 1 into ``num_frames(N)`` latent frames."""

    def noise_unit(self, latents: Float[Tensor, "B D T"]) -> Float[Tensor, ""]:
        """The standard deviation of latent noise of level 1: that of the latents of a batch.

        It has a gradient, so that an encoder in training cannot outgrow the noise.
        """
        return latent_deviation(latents, shared=self.training)

    def posterior(
        self,
        audio: Float[Tensor, "B C N"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B D T"], Float[Tensor, "B D T"]] | None:
        """Mean, which `forward` returns, and standard deviation of a Gaussian posterior.

        None if the encoder gives latents and no posterior.
        """
        return None

    def stepper(self) -> Stepper | None:
        """The encoder on its way through a signal of one channel, if it can work step by step.

        Such an encoder has a `lookahead`: as soon as the samples up to the end of frame
        ``t + lookahead`` are known, latent frame t is. Others are run over long tiles.
        """
        return None

    def packed(self) -> PackedNetwork | None:
        """The encoder for many signals at once on a device, if it can work on windows of rows.

        Rows are the ``C * hop_length`` samples of each frame, channel after channel; the last row
        of a signal may be filled up with zeros. A result is a latent frame. Others are run over
        tiles of equal length together.
        """
        return None


class Decoder(nn.Module, ABC):
    """Turns latents into audio; the counterpart of `Encoder`.

    Attributes:
        context: Neighbouring latent frames, on either side, that the samples of one frame depend
            on; ``None`` if they depend on all.
        lookahead: As for `Encoder`.
        adds_noise: Whether `forward` takes a third argument, ``first_frame`` ``[B]``, the place of
            the latents in a longer signal, and adds noise that depends on it.
    """

    context: int | None
    lookahead: int | None = None
    adds_noise: bool = False

    @abstractmethod
    def forward(
        self, latents: Float[Tensor, "B D T"], noise_level: Float[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C N"]:
        """Decodes latents, exact or quantized, into ``num_samples(T)`` samples.

        ``noise_level`` is the root mean square error of the latents over their standard deviation:
        0 or ``None`` for exact latents, larger for fewer codebooks. Decoders that were not trained
        with it ignore it.
        """

    def parts(
        self,
        latents: Float[Tensor, "B D T"],
        noise_level: Float[Tensor, " B"] | None,
        first_frame: Int[Tensor, " B"],  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B C N"], Float[Tensor, "B C N"]]:
        """`forward` for training: audio, and the same without the noise that the decoder added.

        Where a decoder adds noise, it is that of a signal whose frame ``first_frame`` comes first.
        """
        audio = self(latents, noise_level)
        return audio, audio

    def stepper(self, noise_level: float) -> Stepper | None:  # noqa: ARG002
        """The counterpart of `Encoder.stepper`.

        With latent frame ``t + lookahead`` the samples of frame t are known.
        """
        return None

    def packed(self, noise_level: Float[Tensor, ""]) -> PackedNetwork | None:  # noqa: ARG002
        """The counterpart of `Encoder.packed`.

        Rows are latents, and behind them the `frame_states` of the frame. A result is the
        ``C * hop_length`` samples that begin with the frame, channel after channel; those beyond
        ``num_samples`` are meaningless.
        """
        return None


class Autoencoder(nn.Module, ABC):
    """An encoder, a decoder and the numbers that relate audio to latents.

    Attributes:
        kind: The name under which configs and checkpoints know this family.
        encoder: Audio to latents.
        decoder: Latents to audio.
        sampling_rate: Hz.
        hop_length: Samples per latent frame.
        latent_dim: D.
        coded_dim: How many of these, the first ones, codes stand for; the others are detail that
            only exact latents carry, zero for the decoder of codes. All, unless a family says
            otherwise.
        num_channels: Audio channels that are coded jointly: 1, or 2 for stereo models.
        normalize: Whether the model expects audio of root mean square 1 (the tokenizer then
            carries the gain).
        peak: The largest magnitude of audio that models with `normalize` expect, for those that go
            by that in place of the root mean square.
    """

    kind: ClassVar[str]
    encoder: Encoder
    decoder: Decoder
    sampling_rate: int
    hop_length: int
    latent_dim: int
    num_channels: int
    normalize: bool
    peak: float | None = None

    @property
    def latent_statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Means and standard deviations of the latents, where the model brings them along."""
        return None

    @property
    def coded_dim(self) -> int:
        """How many of the latents codes stand for."""
        return self.latent_dim

    def for_codes(self) -> Autoencoder:
        """The autoencoder without what codes do not depend on: detail, and the decoder's noise."""
        return self

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Latent frames that `encoder` returns for a signal of ``num_samples`` samples."""

    @abstractmethod
    def num_samples(self, num_frames: int) -> int:
        """Samples that `decoder` returns; ``num_samples(num_frames(n)) >= n``."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same modules, as JSON values, weights aside."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Autoencoder:
        """Builds the modules, untrained, from what `to_config` returned."""
