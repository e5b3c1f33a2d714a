"""Detail: latents that codes leave out."""

import numpy as np
import pytest
import torch
from models import DIM, HOP, RATE, make_autoencoder, make_tokenizer, tone
from prepared_data import write_prepared

from generative import LatentDiffusionPipeline, generate, load_run, make_request
from generative.cli import main as generative_main
from generative.diffusion.latent_diffusion import make_scheduler
from generative.evaluation.comparison import evaluate_generations
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.audio import write_audio
from tokenizer.autoencoders.lapped.model import LappedAutoencoder
from tokenizer.cli import main
from tokenizer.training.clips import scan
from tokenizer.training.detail import add_detail
from tokenizer.training.losses import waveform_distortion

DETAIL = 6


@pytest.fixture(scope="module")
def detailed(audio) -> LatentTokenizer:
    return add_detail(make_tokenizer(), scan(audio), DETAIL, seed=0)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 3 * HOP, 5000])
def test_codes_and_what_they_sound_like_stay(detailed, samples):
    plain, wave = make_tokenizer(), tone(samples / RATE, seed=samples)
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (plain, detailed))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_allclose(detailed.decode_codes(ours), plain.decode_codes(row), atol=1e-6)
    latents = detailed.encode_latents(wave, sampling_rate=RATE)
    others = plain.encode_latents(wave, sampling_rate=RATE)
    assert latents["latents"].shape[1] == DIM + DETAIL
    before = torch.get_rng_state()
    assert detailed.codes_fingerprint == plain.codes_fingerprint
    assert torch.equal(torch.get_rng_state(), before)
    assert detailed.fingerprint != plain.fingerprint
    np.testing.assert_allclose(latents["latents"][:, :DIM], others["latents"], atol=1e-5)
    assert detailed.decode_latents(latents).shape == wave.shape
    np.testing.assert_array_equal(detailed.latents_to_codes(latents)["codes"], ours["codes"])


def test_exact_latents_carry_more(detailed, audio):
    """Of the audio that statistics were taken from: the more, the more of the waveform is back."""
    wave = torch.cat([torch.from_numpy(tone(1.5, seed=i)) for i in range(6)])[:, None]
    found = []
    for one in (make_tokenizer(), detailed, add_detail(make_tokenizer(), scan(audio), 30, seed=0)):
        encoded = one.encode(wave)
        back = one.decode(encoded.latents, decoder="continuous", gain=encoded.gain)
        found.append(10 * float(waveform_distortion(back[..., : wave.shape[-1]], wave).mean()))
    assert found[0] - 0.5 > found[1] > found[2] + 0.5, found


def test_their_statistics_are_those_of_audio(detailed):
    wave = torch.cat([torch.from_numpy(tone(1.5, seed=i)) for i in range(6)])[:, None]
    frames = detailed.encode(wave).latents[:, DIM:].transpose(1, 2).flatten(0, 1)
    ratio = frames.std(0) / detailed.latents_std[DIM:]
    assert float(ratio.log().abs().max()) < 0.7, ratio


def test_coded_latents_alone_are_taken_as_latents_without_detail(detailed):
    wave = tone(0.5, channels=2)
    row = detailed.encode_latents(wave, sampling_rate=RATE)
    coded = {**row, "latents": row["latents"][:, :DIM]}
    padded = {**row, "latents": np.pad(coded["latents"], ((0, 0), (0, DETAIL)))}
    np.testing.assert_array_equal(detailed.decode_latents(coded), detailed.decode_latents(padded))
    codes = detailed.latents_to_codes(row)["codes"]
    np.testing.assert_array_equal(detailed.latents_to_codes(coded)["codes"], codes)
    z = torch.from_numpy(coded["latents"]).T[None]
    again = detailed.denormalize_latents(detailed.normalize_latents(z))
    torch.testing.assert_close(again, z)
    with pytest.raises(ValueError, match=rf"\[B, {DIM + DETAIL}, T\]"):
        detailed.decode_latents({**row, "latents": row["latents"][:, : DIM + 1]})


@pytest.mark.parametrize("dim", [DIM, DIM + DETAIL])
def test_a_stream_is_the_whole(detailed, dim):
    wave = tone(0.7)
    row = detailed.encode_latents(wave, sampling_rate=RATE, gain=0.1)
    stream = detailed.stream_encoder(gain=0.1, latents=True)
    parts = [stream.push(wave[:, :3000]), stream.push(wave[:, 3000:]), stream.finish()]
    latents = np.concatenate(parts, axis=1)
    np.testing.assert_array_equal(latents[0], row["latents"])
    decoder = detailed.stream_decoder(gain=0.1, latents=True)
    pieces = [decoder.push(piece[..., :dim]) for piece in np.array_split(latents, 4, axis=1)]
    whole = detailed.decode_latents({"latents": row["latents"][:, :dim], "gain": row["gain"]})
    np.testing.assert_array_equal(np.concatenate([*pieces, decoder.finish()], axis=1), whole)


def test_saved_and_loaded_they_are_the_same(detailed, tmp_path):
    detailed.save_pretrained(tmp_path / "model")
    again, wave = load_tokenizer(tmp_path / "model"), tone(0.3)
    assert (again.coded_dim, again.latent_dim) == (DIM, DIM + DETAIL)
    for name in ("encode_codes", "encode_latents"):
        one, other = (getattr(t, name)(wave, sampling_rate=RATE) for t in (detailed, again))
        column = name.removeprefix("encode_")
        np.testing.assert_array_equal(one[column], other[column])


def test_a_new_model_with_detail_begins_with_as_many_components():
    """The linear paths are those of a model without: detail only says what is not coded."""
    energy = torch.diag(torch.linspace(2, 0.01, HOP))
    sizes = {**make_autoencoder().to_config(), "latent_dim": DIM + DETAIL}
    paths = []
    for detail in (0, DETAIL):
        torch.manual_seed(0)
        model = LappedAutoencoder.from_config({**sizes, "detail_dim": detail})
        model.initialize(energy)
        paths.append((model.encoder.linear.weight, model.decoder.linear.weight))
        assert model.coded_dim == DIM + DETAIL - detail
    for one, other in zip(*paths, strict=True):
        torch.testing.assert_close(one, other)


def test_the_command_line_adds_fits_and_finetunes(audio, tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "plain")
    loop = ["--steps=2", "--batch-size=2", "--crop-seconds=0.25", "--num-workers=0"]
    loop.append("--held-out=1")
    given = [str(tmp_path / "plain"), str(audio), "--out", str(tmp_path / "run"), *loop]
    assert main(["finetune", *given, "--decoder", "continuous", "--detail-dim", str(DETAIL)]) == 0
    found, plain = load_tokenizer(tmp_path / "run/model"), make_tokenizer()
    assert (found.coded_dim, found.latent_dim) == (DIM, DIM + DETAIL)
    assert "val/mel_coded" in (tmp_path / "run/log.jsonl").read_text()
    wave = tone(0.4)
    row, ours = (t.encode_codes(wave, sampling_rate=RATE) for t in (plain, found))
    np.testing.assert_array_equal(row["codes"], ours["codes"])
    np.testing.assert_allclose(found.decode_codes(ours), plain.decode_codes(row), atol=1e-6)
    # A quantizer fitted anew has the coded dimensions, in whatever metric.
    for standardization in ("none", "decoder"):
        out = tmp_path / standardization
        fit = ["fit", str(tmp_path / "run/model"), str(audio), "--out", str(out), "--codebooks"]
        fit += ["2", "--codebook-size", "8", "--standardization", standardization]
        assert main(fit) == 0
        fitted = load_tokenizer(out / "model")
        assert fitted.config.quantizer["dim"] == DIM
        assert fitted.encode_codes(wave, sampling_rate=RATE)["codes"].shape[1] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({}, "detail_dim=73 beside 8 latents"), ({"detail_dim": 1}, "detail_dim is 1")],
)
def test_what_cannot_be_added_is_refused(audio, change, message):
    sizes = {**make_autoencoder().to_config(), **change}
    tokenizer = LatentTokenizer.from_autoencoder(LappedAutoencoder.from_config(sizes))
    with pytest.raises(ValueError, match=message):
        add_detail(tokenizer, scan(audio), HOP - DIM + 1, seed=0)


def test_refusals(audio, tmp_path, capsys):
    model = str(tmp_path / "plain")
    make_tokenizer().save_pretrained(model)
    given = [model, str(audio), "--out", str(tmp_path / "run")]
    assert main(["finetune", *given, "--detail-dim", "4"]) == 2
    assert "--decoder continuous" in capsys.readouterr().err
    sizes = {**make_autoencoder().to_config(), "detail_dim": DIM}
    with pytest.raises(ValueError, match=r"detail_dim 8.* latent_dim"):
        LappedAutoencoder.from_config(sizes)
    end_to_end = ["train", str(audio), "--out", str(tmp_path / "e2e"), "--preset", "tiny"]
    assert main([*end_to_end, "--detail-dim", "4", "--bottleneck", "rfsq"]) == 2
    assert "without a bottleneck" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "dim"), [([], DIM), (["--detail"], DIM + DETAIL)])
def test_a_diffusion_model_makes_coded_latents_or_all(detailed, tmp_path, flags, dim):
    detailed.save_pretrained(tmp_path / "tokenizer")
    write_prepared(tmp_path / "data", detailed)
    write_audio(tmp_path / "start.wav", tone(0.2), RATE)
    command = ["train-diffusion", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *flags]
    command += ["--tokenizer", str(tmp_path / "tokenizer"), "--steps=2", "--batch-size=4"]
    command += ["--crop-frames=16", "--warmup-steps=1", "--num-workers=0", "--sample-every=0"]
    command += ["--held-out=0.2", "--width=32", "--depth=1", "--heads=2"]
    assert generative_main(command) == 0
    model, tok, _ = load_run(tmp_path / "run")
    torch.testing.assert_close(model.latents_std, detailed.latents_std[:dim])
    request = make_request(tok, 0.5, labels=["rain"], prompt=str(tmp_path / "start.wav"))
    (clip,) = generate(model, tok, request, seed=0)
    assert clip.row["latents"].shape[1] == dim
    assert clip.audio.shape[-1] == round(0.5 * RATE)
    (prompt,) = request.prompts
    assert prompt is not None
    kept = len(prompt["latents"])
    np.testing.assert_array_equal(clip.row["latents"][:kept], prompt["latents"][:, :dim])
    real = [tok.encode_latents(tone(0.5, seed=i), sampling_rate=RATE) for i in range(4)]
    found = evaluate_generations(real, [clip.row] * 2, tok, segment_seconds=0.2)
    assert np.isfinite(found["frechet"]["latents"]["generated"])
    pipe = LatentDiffusionPipeline(model, make_scheduler(), tok)
    pipe.set_progress_bar_config(disable=True)
    options = {"seconds": 0.4, "num_inference_steps": 2, "n_codebooks": 2}
    out = pipe(audio=str(tmp_path / "start.wav"), keep_seconds=[(0, 0.1)], **options)
    assert out.audios.shape == (1, 1, round(0.4 * RATE))
