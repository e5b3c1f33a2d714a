import pickle
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from datasets.fingerprint import Hasher
from models import CODEBOOKS, DIM, ENTRIES, FILES, HOP, RATE, REFUSED, make_autoencoder, tone
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel

from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.export.diffusers_view import DiffusersView


def wave(seconds: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(tone(seconds, seed=seed))[None]


def test_contract(tokenizer):
    assert tokenizer.sampling_rate == RATE
    assert tokenizer.hop_length == HOP
    assert tokenizer.frame_rate == RATE / HOP
    assert tokenizer.latent_dim == DIM
    assert tokenizer.num_codebooks == CODEBOOKS
    assert tokenizer.codebook_size == ENTRIES
    assert tokenizer.bitrate() == RATE / HOP * CODEBOOKS * 4
    assert tokenizer.bitrate(1) == 400
    assert [tokenizer.codebooks_for(rate) for rate in (400, 799, 800, 1e9)] == [1, 1, 2, 4]
    with pytest.raises(ValueError, match="399"):
        tokenizer.codebooks_for(399)


def test_batch_with_padding_equals_single(tokenizer):
    lengths = [1, 79, 80, 4321, 8000]
    clips = [wave(1.0, seed)[..., :length] for seed, length in enumerate(lengths)]
    batch = torch.zeros(len(clips), 1, 8000)
    mask = torch.zeros(len(clips), 8000, dtype=torch.bool)
    for i, clip in enumerate(clips):
        batch[i, :, : lengths[i]] = clip[0]
        batch[i, :, lengths[i] :] = 9.0  # what is under the mask does not matter
        mask[i, : lengths[i]] = True
    out = tokenizer.encode(batch, mask)
    codes = tokenizer.quantize(out.latents)
    for i, clip in enumerate(clips):
        alone = tokenizer.encode(clip)
        frames = alone.latents.shape[-1]
        assert int(out.frame_mask[i].sum()) == frames
        assert torch.equal(out.latents[i, :, :frames], alone.latents[0])
        assert not out.latents[i, :, frames:].any()
        assert out.gain[i] == alone.gain[0]
        assert torch.equal(codes[i, :, :frames], tokenizer.quantize(alone.latents)[0])


def test_more_codebooks_never_distort_more(tokenizer):
    latents = tokenizer.encode(wave(3.0)).latents
    codes = tokenizer.quantize(latents)
    errors = [
        float((tokenizer.dequantize(codes[:, :n]) - latents).square().mean())
        for n in range(1, CODEBOOKS + 1)
    ]
    assert errors == sorted(errors, reverse=True)
    levels = [tokenizer.noise_level(n) for n in range(1, CODEBOOKS + 1)]
    assert levels == sorted(levels, reverse=True)
    assert tokenizer.noise_level(None) == 0.0


def test_forward_keeps_the_length(tokenizer):
    for length in (1, 80, 81, 500):
        x = wave()[..., :length]
        assert tokenizer(x, n_codebooks=2).audio_values.shape == x.shape


def test_gain_scales_through(tokenizer):
    quiet, loud = tokenizer.encode(wave() * 0.01), tokenizer.encode(wave())
    torch.testing.assert_close(quiet.latents, loud.latents, atol=2e-2, rtol=1e-2)
    assert float(loud.gain / quiet.gain) == pytest.approx(100, rel=0.02)
    a = tokenizer.decode(loud.latents, decoder="continuous", gain=torch.tensor([1.0]))
    b = tokenizer.decode(loud.latents, decoder="continuous")
    torch.testing.assert_close(b, a * tokenizer.config.default_gain)


def test_decoders_are_chosen_explicitly(tokenizer):
    z = tokenizer.encode(wave()).latents
    outs = [
        tokenizer.decode(z, decoder=name, n_codebooks=n)
        for name in ("continuous", "finetuned")
        for n in (None, 2)
    ]
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(outs[i], outs[j])
    with pytest.raises(REFUSED, match="best"):
        tokenizer.decode(z, decoder="best")


def test_latent_normalisation(tokenizer):
    z = tokenizer.encode(wave(2.0)).latents
    normal = tokenizer.normalize_latents(z)
    torch.testing.assert_close(tokenizer.denormalize_latents(normal), z, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        normal[0, 3], (z[0, 3] - tokenizer.latents_mean[3]) / tokenizer.latents_std[3]
    )


def test_save_and_load_are_bit_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == FILES
    x = wave(2.0)
    for again in (
        LatentTokenizer.from_pretrained(tmp_path / "saved"),
        load_tokenizer(str(tmp_path / "saved")),
        AutoModel.from_pretrained(tmp_path / "saved"),
        deepcopy(tokenizer),
    ):
        assert isinstance(again, LatentTokenizer)
        assert again.state_dict().keys() == tokenizer.state_dict().keys()
        for name, value in tokenizer.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
            assert again.state_dict()[name].dtype == value.dtype, name
        assert again.fingerprint == tokenizer.fingerprint
        assert not again.training
        assert torch.equal(again(x).audio_values, tokenizer(x).audio_values)
    assert AutoConfig.from_pretrained(tmp_path / "saved").model_type == "latent_tokenizer"


def test_half_precision_files_load_as_float32(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path, half=True)
    sizes = [(p / "model.safetensors").stat().st_size for p in (tmp_path, tmp_path / "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    again = LatentTokenizer.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert again.quantizer.codebooks.dtype == torch.float32
    assert again(wave()).audio_values.dtype == torch.float32
    torch.testing.assert_close(again.latents_std, tokenizer.latents_std, atol=0, rtol=0)
    torch.testing.assert_close(
        again.encode(wave()).latents, tokenizer.encode(wave()).latents, atol=2e-2, rtol=2e-2
    )
    # Saved again, whole or half, nothing more is lost.
    again.save_pretrained(tmp_path / "again", half=True)
    assert LatentTokenizer.from_pretrained(tmp_path / "again").fingerprint == again.fingerprint


def test_fingerprint_is_that_of_config_and_weights(tokenizer):
    changed = deepcopy(tokenizer)
    with torch.no_grad():
        changed.autoencoder.encoder.head.bias[0] += 1e-6
    assert changed.fingerprint != tokenizer.fingerprint
    changed = deepcopy(tokenizer)
    changed.config.default_gain = 0.2
    assert changed.fingerprint != tokenizer.fingerprint


@pytest.mark.slow
def test_fingerprint_is_the_same_in_another_process(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    script = "import sys, tokenizer; print(tokenizer.load_tokenizer(sys.argv[1]).fingerprint)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == tokenizer.fingerprint


def add_in_place(weight):
    with torch.no_grad():
        weight[0] += 1


def replace_data(weight):
    weight.data = weight.data + 1


def copy_into(weight):
    with torch.no_grad():
        weight.copy_(weight + 1)


@pytest.mark.parametrize("change", [add_in_place, replace_data, copy_into])
def test_hashes_follow_each_change_of_a_weight(tokenizer, change):
    tokenizer = deepcopy(tokenizer)
    parts = {
        "decoder": tokenizer.finetuned_decoder.head.bias,
        "encoder": next(tokenizer.autoencoder.encoder.parameters()),
        "quantizer": tokenizer.quantizer.codebooks,
    }
    for name, weight in parts.items():
        before = tokenizer.fingerprint, tokenizer.codes_fingerprint
        assert before == (tokenizer.fingerprint, tokenizer.codes_fingerprint)
        change(weight)
        assert tokenizer.fingerprint != before[0]
        assert (tokenizer.codes_fingerprint != before[1]) == (name != "decoder")
        again = deepcopy(tokenizer)  # Computes its hashes anew.
        assert again.fingerprint == tokenizer.fingerprint
        assert again.codes_fingerprint == tokenizer.codes_fingerprint


def test_hashes_follow_a_replaced_quantizer(tokenizer):
    changed = deepcopy(tokenizer)
    seen = {changed.codes_fingerprint}
    for value in range(5):
        quantizer = deepcopy(tokenizer.quantizer)
        quantizer.codebooks[0, 0, 0] = value
        changed.set_quantizer(quantizer)
        del quantizer
        seen.add(changed.codes_fingerprint)
    assert len(seen) == 6
    changed.set_quantizer(deepcopy(tokenizer.quantizer))
    assert changed.codes_fingerprint == tokenizer.codes_fingerprint


def test_copies_are_made_of_what_the_tokenizer_is_made_of_now(beam_tokenizer, tmp_path):
    latents = beam_tokenizer.encode(wave(2.0)).latents
    tokenizer = deepcopy(beam_tokenizer)
    told = tokenizer.fingerprint, Hasher.hash(tokenizer.encode_codes)
    assert tokenizer.quantizer is not None
    tokenizer.quantizer.beam_width = 1
    codes = tokenizer.quantize(latents)
    assert (codes != beam_tokenizer.quantize(latents)).any()
    # Another search gives other codes, so it may not share a cache; but they mean the same.
    assert tokenizer.fingerprint != told[0]
    assert Hasher.hash(tokenizer.encode_codes) != told[1]
    assert tokenizer.codes_fingerprint == beam_tokenizer.codes_fingerprint
    tokenizer.finetuned_decoder = None
    tokenizer.save_pretrained(tmp_path)
    for again in (
        deepcopy(tokenizer),
        pickle.loads(pickle.dumps(tokenizer)),
        LatentTokenizer.from_pretrained(tmp_path),
    ):
        assert again.config.quantizer["beam_width"] == 1
        assert again.codes_decoder == "continuous"
        assert again.fingerprint == tokenizer.fingerprint
        assert torch.equal(again.quantize(latents), codes)


def test_checkpoints_that_do_not_fit_are_refused(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        LatentTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        LatentTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    removed = {k: v for k, v in weights.items() if k != "latents_mean"}
    save_file(removed, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="latents_mean"):
        LatentTokenizer.from_pretrained(tmp_path)
    save_file({**weights, "extra": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="extra"):
        LatentTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("error", [ImportError, MemoryError])
def test_what_is_not_the_checkpoints_fault_is_reported_as_it_is(
    tokenizer, tmp_path, monkeypatch, error
):
    tokenizer.save_pretrained(tmp_path)

    def fail(*_, **__):
        raise error("psst")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)
    with pytest.raises(error, match="psst"):
        LatentTokenizer.from_pretrained(tmp_path)


def test_newer_formats_are_refused(tokenizer):
    config = deepcopy(tokenizer.config)
    config.format_version = 99
    with pytest.raises(ValueError, match=r"\b99\b"):
        LatentTokenizer(config)


def test_unfitted_models_say_what_is_missing():
    raw = LatentTokenizer.from_autoencoder(make_autoencoder())
    assert raw.encode(wave()).latents.shape[1] == DIM
    for call in (
        lambda: raw.quantize(torch.zeros(1, DIM, 3)),
        lambda: raw.num_codebooks,
        lambda: raw.encode_codes(tone(1.0), sampling_rate=RATE),
    ):
        with pytest.raises(RuntimeError, match="latok fit"):
            call()
    with pytest.raises(RuntimeError, match="latok finetune"):
        raw.decode(torch.zeros(1, DIM, 3), decoder="finetuned")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(torch.zeros(1, 2, 100)), r"\(1, 2, 100\).*\[B, 1, N\]"),
        (lambda t: t.encode(torch.full((1, 1, 100), torch.nan)), "NaN"),
        (lambda t: t.encode(torch.zeros(1, 1, 0)), "samples"),
        (lambda t: t.encode(torch.ones(1, 1, 9), torch.zeros(1, 9, dtype=torch.bool)), "samples"),
        (lambda t: t.quantize(torch.zeros(1, 9, 5)), r"\(1, 9, 5\)"),
        (lambda t: t.quantize(torch.zeros(1, DIM, 5), 5), r"n_codebooks=5 .*4"),
        (lambda t: t.quantize(torch.zeros(1, DIM, 5), 0), r"n_codebooks=0"),
        (lambda t: t.dequantize(torch.zeros(1, 5, 5, dtype=torch.int64)), r"n_codebooks=5"),
        (lambda t: t.dequantize(torch.full((1, 2, 5), 16)), "16"),
        (lambda t: t.dequantize(torch.full((1, 2, 5), -1)), "-1"),
        (lambda t: t.decode(torch.full((1, DIM, 5), torch.inf), decoder="continuous"), "infinite"),
        (lambda t: t.decode(torch.zeros(1, 7, 5), decoder="continuous"), r"\(1, 7, 5\)"),
        (lambda t: t.resolve_codebooks(2, 800), "both"),
    ],
)
def test_bad_tensors_are_refused(tokenizer, call, message):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


def test_what_comes_out_can_be_trained_on(tokenizer):
    x = wave()
    latents = tokenizer.encode(x).latents  # [1, D, T]
    codes = tokenizer.quantize(latents)  # [1, K, T]
    again = tokenizer.dequantize(codes)
    audio = tokenizer.decode(latents, decoder="continuous")
    view = DiffusersView(tokenizer)
    normal = view.encode(x).latent_dist.sample()
    tiles = torch.cat(list(tokenizer.encode_stream([x])), -1)
    pieces = torch.cat(list(tokenizer.decode_stream([latents], "continuous", None)), -1)
    sounds = (audio, tokenizer(x).audio_values, view.decode(normal).sample, pieces)

    embedding, linear = torch.nn.Embedding(ENTRIES, 4), torch.nn.Linear(DIM, ENTRIES)
    scale = torch.nn.Parameter(torch.ones(1))
    losses = [embedding(codes).sum()]
    for z in (latents, again, normal, tiles):
        predicted = linear(z.transpose(1, 2))  # [1, T, S]
        target = codes[:, 0, : z.shape[-1]]
        losses.append(functional.cross_entropy(predicted.transpose(1, 2), target))
        losses.append(functional.mse_loss(scale * z, z))
    losses += [functional.l1_loss(scale * sound, sound) for sound in sounds]
    for loss in losses:
        loss.backward()
    assert all(p.grad is not None for p in (*embedding.parameters(), *linear.parameters(), scale))
    assert not any(p.grad is not None for p in tokenizer.parameters())
    # In place, as biases and positions are added.
    for z in (latents, again, normal, tiles, *sounds):
        z.add_(scale).sum().backward()


def test_streams_leave_the_mode_to_who_takes_their_tiles(tokenizer):
    for tiles in (
        tokenizer.encode_stream([wave()]),
        tokenizer.decode_stream([torch.zeros(1, DIM, 3)], "continuous", None),
    ):
        assert not next(tiles).requires_grad
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


def test_new_quantizer_drops_the_decoder_finetuned_for_the_old(tokenizer):
    other = deepcopy(tokenizer)
    other.set_quantizer(deepcopy(tokenizer.quantizer))
    assert other.finetuned_decoder is None
    assert other.codes_decoder == "continuous"
    assert not other.config.has_finetuned_decoder
