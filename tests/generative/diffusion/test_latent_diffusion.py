import numpy as np
import pytest
import torch
from models import DIM, HOP, RATE, REFUSED, make_stereo_autoencoder, make_tokenizer, tone

from generative.diffusion.latent_diffusion import LatentDiffusion, make_scheduler
from generative.diffusion.pipeline import LatentDiffusionPipeline
from generative.diffusion.transformer import DiffusionTransformer, VelocityOutput
from generative.language_model.codec_lm import CodecLM
from generative.language_model.config import CodecLMConfig
from generative.protocol import (
    CodeSampling,
    DiffusionSampling,
    GenerationRequest,
    GenerativeModel,
    encoder_fingerprint,
)
from generative.runs.generation import decode, generate, make_request, save_clips
from generative.runs.loading import load_model

LABELS = ("birds", "rain")


def make_model(tokenizer, *, wild=True, **options):
    """A small model; a wild one gives conditions and neighbours an influence without training."""
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "heads": 2} | options
    model = LatentDiffusion(DIM, LABELS, **sizes)
    model.set_statistics(tokenizer.latents_mean, tokenizer.latents_std)
    if wild:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(model, labels=(0, 1), frames=13, seed=0, **options):
    conditions = {"label": torch.tensor(labels), "caption": [None] * len(labels)}
    options = {"scheduler": make_scheduler(), "steps": 4} | options
    return model.sample(conditions, frames, generator=seeded(seed), **options)


def test_it_is_a_generative_model(model):
    assert isinstance(model, GenerativeModel)
    assert model.labels == LABELS


@pytest.mark.parametrize("share", [0.005, 0.3, 0.9])
def test_a_new_network_is_the_best_linear_guess_and_its_blocks_the_identity(share):
    network = DiffusionTransformer(DIM, 32, 2, 2, condition_width=32)
    data, noise = torch.randn(2, 4, 8001, DIM, generator=seeded())
    noisy, velocity = (1 - share) * data + share * noise, noise - data
    slope = (noisy * velocity).mean() / noisy.square().mean()
    condition, mask = torch.randn(4, 1, 32), torch.ones(4, 1, dtype=torch.bool)
    found = network(noisy[:, :9], torch.full((4,), 1000 * share), condition, mask).sample
    assert torch.allclose(found, slope * noisy[:, :9], atol=0.05)
    tokens = torch.randn(1, 4, 32)
    angles = (torch.ones(4, 8), torch.zeros(4, 8))
    assert torch.equal(network.blocks[0](tokens, torch.zeros(1, 6, 32), angles, None), tokens)


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 8])
def test_frames_beyond_the_mask_change_nothing(tokenizer, patch):
    network = make_model(tokenizer, patch_frames=patch).transformer
    x, condition = torch.randn(2, 12, DIM), torch.randn(2, 3, 32)
    time = torch.tensor([100.0, 700.0])
    present = torch.tensor([[True, True, True], [True, False, True]])
    frames = torch.arange(12) < torch.tensor([[12], [7]])
    out = network(x, time, condition, present, frames).sample
    other = torch.where(frames[..., None], x, 99.0)
    changed = condition.clone()
    changed[1, 1] = 99
    again = network(other, time, changed, present, frames).sample
    torch.testing.assert_close(again[0], out[0])
    torch.testing.assert_close(again[1, :7], out[1, :7])
    alone = network(x[1:, :7], time[1:], condition[1:, [0, 2]], present[1:, [0, 2]]).sample
    torch.testing.assert_close(alone[0], out[1, :7])
    # And what is within the mask does: time, condition, every frame.
    for index, value in ((1, time + 50), (2, condition + 1)):
        arguments = [x, time, condition, present, frames]
        arguments[index] = value
        assert not torch.allclose(network(*arguments).sample[0], out[0], atol=1e-4)
    moved = x.clone()
    moved[0, 11] += 1
    changed = network(moved, time, condition, present, frames).sample
    assert not torch.allclose(changed[0, 0], out[0, 0])


def test_neighbours_are_told_apart_by_position(tokenizer):
    network = make_model(tokenizer, patch_frames=1).transformer
    x, condition = torch.randn(1, 6, DIM), torch.randn(1, 1, 32)
    mask, time = torch.ones(1, 1, dtype=torch.bool), torch.tensor([500.0])
    swapped = x[:, [0, 1, 2, 3, 5, 4]]
    first, second = (network(v, time, condition, mask).sample for v in (x, swapped))
    assert not torch.allclose(first[0, 0], second[0, 0], atol=1e-5)


def test_loss_is_that_of_the_velocity_on_real_frames(model):
    class Recorder(torch.nn.Module):
        def forward(self, noisy, timestep, *_, **__):
            self.seen = noisy, timestep
            return VelocityOutput(torch.zeros_like(noisy))

    other = make_model_with(model, Recorder())
    data = torch.randn(3, 10, DIM)
    mask = torch.arange(10) < torch.tensor([[10], [4], [1]])
    batch = {"latents": data, "mask": mask, "label": torch.tensor([0, 1, -1])}
    loss = other.training_loss(batch, seeded(3))["loss"]
    noisy, timestep = other.transformer.seen
    sigma = timestep[:, None, None] / 1000
    noise = (noisy - (1 - sigma) * data) / sigma
    wanted = (noise - data).square().mean(-1)[mask].mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
    batch["latents"] = torch.where(mask[..., None], data, 1e3)
    torch.testing.assert_close(other.training_loss(batch, seeded(3))["loss"], loss)
    assert other.training_loss(batch, seeded(4))["loss"] != loss


def make_model_with(model, network):
    other = LatentDiffusion(DIM, LABELS, width=32, depth=1, heads=2)
    other.set_statistics(model.latents_mean, model.latents_std)
    other.transformer = network
    return other.eval()


def test_sigmas_are_logit_normal(model):
    drawn = torch.cat([model.draw_sigmas(16, seeded(i)) for i in range(400)])
    logits = torch.logit(drawn)
    assert float(logits.mean()) == pytest.approx(0, abs=0.05)
    assert float(logits.std()) == pytest.approx(1, abs=0.05)
    # Spread over the batch: half of them on either side, always, and in no fixed order.
    first = torch.stack([model.draw_sigmas(16, seeded(i)) for i in range(50)])
    assert ((first > 0.5).sum(1) == 8).all()
    assert 0.2 < float((first[:, 0] > 0.5).float().mean()) < 0.8


class Towards(torch.nn.Module):
    """The exact velocity where all data are one point: straight lines from noise to it."""

    def __init__(self, point):
        super().__init__()
        self.point, self.sigmas = point, []

    def forward(self, noisy, timestep, *_):
        sigma = timestep[:, None, None] / 1000
        self.sigmas.append(float(sigma[0]))
        return VelocityOutput((noisy - self.point) / sigma)


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_samplers_follow_straight_lines_exactly(model, solver, steps):
    point = torch.randn(1, 13, DIM)
    network = Towards(point)
    other = make_model_with(model, network)
    found = draw(other, scheduler=make_scheduler(solver, shift=2.0), steps=steps)
    torch.testing.assert_close(found, other.denormalize(point).expand_as(found), atol=1e-3, rtol=0)
    assert len(network.sigmas) == steps
    assert network.sigmas[0] == pytest.approx(1, abs=2e-3)
    assert network.sigmas == sorted(network.sigmas, reverse=True)


def test_solvers_agree_when_steps_are_many(model):
    many = draw(model, steps=100)
    for solver, steps, tolerance in (("euler", 50, 0.1), ("dpm++", 25, 0.1)):
        few = draw(model, scheduler=make_scheduler(solver), steps=steps)
        assert float((few - many).abs().mean()) < tolerance * float(many.abs().mean())


def test_same_seed_same_latents(model):
    assert torch.equal(draw(model, seed=1), draw(model, seed=1))
    assert not torch.allclose(draw(model, seed=1), draw(model, seed=2))
    assert not torch.allclose(draw(model, labels=(0, 1))[1], draw(model, labels=(0, 0))[1])


def test_guidance_extrapolates(model):
    class Labelled(torch.nn.Module):
        def forward(self, noisy, timestep, condition, mask):
            del timestep, mask
            velocity = condition[:, :, :1].expand(-1, noisy.shape[1], DIM)
            return VelocityOutput(velocity.contiguous())

    other = make_model_with(model, Labelled())
    weights = other.conditioner.label.weight[:, 0]
    noise = draw(other, scheduler=make_scheduler(), steps=1) + other.latents_std * weights[
        [1, 2], None, None
    ].expand(2, 13, 1)
    for scale in (0.0, 1.0, 3.5):
        velocity = weights[0] + scale * (weights[[1, 2]] - weights[0])
        found = draw(other, steps=3, guidance_scale=scale)
        wanted = noise - other.latents_std * velocity[:, None, None]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
def test_inpainting_keeps_what_is_known(model, solver):
    known = torch.randn(2, 13, DIM)
    keep = torch.zeros(2, 13, dtype=torch.bool)
    keep[0, :5] = keep[1, 8:10] = True
    options = {"scheduler": make_scheduler(solver), "steps": 5}
    found = draw(model, known=known, keep=keep, **options)
    free = draw(model, **options)
    assert torch.equal(found[keep], known[keep])
    # The rest listens to it.
    assert not torch.allclose(found[~keep], free[~keep], atol=1e-3)
    with pytest.raises(ValueError, match="both"):
        draw(model, known=known)


@pytest.mark.slow
def test_training_learns_a_distribution(tokenizer):
    model = make_model(tokenizer, wild=False, condition_dropout=0.2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    means = torch.stack([torch.full((DIM,), 0.95), torch.full((DIM,), -0.95)])
    for step in range(200):
        generator = seeded(step)
        label = torch.randint(2, (16,), generator=generator)
        data = means[label][:, None] + 0.3 * torch.randn(16, 6, DIM, generator=generator)
        batch = {"latents": data, "mask": torch.ones(16, 6, dtype=torch.bool), "label": label}
        optimizer.zero_grad()
        model.training_loss(batch, generator)["loss"].backward()
        optimizer.step()
    model.eval()
    found = model.normalize(draw(model, labels=(0, 1) * 16, frames=6, steps=10))
    assert float(found[0::2].mean()) == pytest.approx(0.95, abs=0.25)
    assert float(found[1::2].mean()) == pytest.approx(-0.95, abs=0.25)
    either = model.normalize(draw(model, labels=(-1,) * 32, frames=6, steps=10)).mean((1, 2))
    assert (either > 0.45).any()
    assert (either < -0.45).any()


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = LatentDiffusion.from_pretrained(tmp_path)
    assert again.labels == LABELS
    assert torch.equal(draw(again), draw(model))
    assert torch.equal(draw(load_model(tmp_path)), draw(model))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_half_precision_is_what_was_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path)
    half = LatentDiffusion.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.transformer.patch_in.weight.dtype == torch.bfloat16
    exact, rounded = (draw(each, guidance_scale=2.0) for each in (model, half))
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().mean()) < 0.1 * float(exact.abs().mean())


# Rows, audio


def test_rows_decode_to_the_length_asked_for(model, tokenizer):
    request = make_request(tokenizer, 0.313, labels=["rain", None, "birds"])
    rows = model.generate_rows(request, seeded())
    assert len(rows) == 3
    for row in rows:
        assert row["latents"].shape == (request.num_frames, DIM)
        audio = tokenizer.decode_latents(row)
        assert audio.shape == (1, round(0.313 * RATE))
        level = float(np.sqrt(np.mean(tokenizer.decode_latents(row | {"gain": [1.0]}) ** 2)))
        assert float(np.sqrt(np.mean(audio**2))) == pytest.approx(
            level * tokenizer.default_gain, rel=1e-3
        )


def test_a_prompt_is_continued(model, tokenizer):
    wave = tone(0.31)
    request = make_request(
        tokenizer, 0.6, labels=["rain"], prompt=wave, sampling_rate=RATE, n_codebooks=2
    )
    row = model.generate_rows(request, seeded())[0]
    encoded = tokenizer.encode_latents(wave, sampling_rate=RATE)
    usable = wave.shape[-1] // HOP
    assert np.array_equal(row["latents"][:usable], encoded["latents"][:usable])
    assert row["gain"] == pytest.approx(encoded["gain"].tolist())
    prompt = request.prompts[0]
    codes = tokenizer.encode_codes(wave, sampling_rate=RATE, n_codebooks=2)["codes"]
    assert np.array_equal(prompt["codes"], codes[:usable])
    # Samples that no generated frame reaches are those of the prompt.
    audio = tokenizer.decode_latents(row)
    plain = tokenizer.decode_latents(encoded)
    assert np.abs(audio[:, : HOP * 8] - plain[:, : HOP * 8]).max() < 1e-5
    with pytest.raises(ValueError, match=r"31 .* 21"):
        model.generate_rows(
            make_request(tokenizer, 0.2, labels=["rain"], prompt=wave, sampling_rate=RATE), seeded()
        )


@pytest.mark.parametrize("kind", ["each channel", "jointly", "codes"])
def test_a_prompt_of_stereo_is_continued_in_stereo(model, tokenizer, kind):
    wave, seconds, n_codebooks = tone(0.31, channels=2), 0.6, None
    if kind == "jointly":
        tokenizer = make_tokenizer(make_stereo_autoencoder())
        model = make_model(tokenizer)
    elif kind == "codes":
        n_codebooks = 2
        config = CodecLMConfig.for_tokenizer(tokenizer, 2, width=32, depth=1, heads=2)
        model = CodecLM(config).eval()
    shared = {"prompt": wave, "sampling_rate": RATE, "n_codebooks": n_codebooks}
    labels = ["rain", None] if model.labels else [None, None]
    request = make_request(tokenizer, seconds, labels=labels, **shared)
    clips = list(generate(model, tokenizer, request, batch_size=1))
    assert [clip.label for clip in clips] == labels
    encode = tokenizer.encode_latents if n_codebooks is None else tokenizer.encode_codes
    how = {} if n_codebooks is None else {"n_codebooks": n_codebooks}
    row = encode(wave, sampling_rate=RATE, **how)
    plain = decode(tokenizer, row)
    for clip in clips:
        assert clip.audio.shape == (2, round(seconds * RATE))
        assert clip.row["gain"] == pytest.approx(row["gain"].tolist())
        # Samples that no generated frame reaches are those of the prompt, on both sides.
        assert np.abs(clip.audio[:, : HOP * 8] - plain[:, : HOP * 8]).max() < 1e-5
        assert not np.allclose(clip.audio[0], clip.audio[1], atol=1e-3)
    if kind != "jointly":
        with pytest.raises(ValueError, match="2 channels"):
            make_request(tokenizer, seconds, codes=CodeSampling(stop=True), **shared)


def test_parts_of_a_prompt_stay_and_the_rest_is_filled_in(model, tokenizer):
    wave, ranges = tone(0.6), [(0.0, 0.1), (0.3, 0.42)]
    shared = {"labels": ["rain"], "prompt": wave, "sampling_rate": RATE}
    request = make_request(tokenizer, 0.5, keep_seconds=ranges, **shared)
    row = model.generate_rows(request, seeded())[0]
    encoded = tokenizer.encode_latents(wave, sampling_rate=RATE)["latents"]
    rate = tokenizer.frame_rate
    keep = np.zeros(len(row["latents"]), dtype=bool)
    for first, last in ranges:
        keep[round(first * rate) : round(last * rate)] = True
    assert np.array_equal(row["latents"][keep], encoded[: len(keep)][keep])
    assert (
        not np.isclose(row["latents"][~keep], encoded[: len(keep)][~keep], atol=1e-3).all(1).any()
    )
    for wrong, part in (([(0.3, 0.2)], "0.3 to 0.2"), ([(5.0, 6.0)], "ends at")):
        with pytest.raises(ValueError, match=part):
            make_request(tokenizer, 0.5, keep_seconds=wrong, **shared)


def test_generate_in_batches_and_save(model, tokenizer, tmp_path):
    request = make_request(
        tokenizer, 0.2, labels=["rain"] * 3, diffusion=DiffusionSampling(3, "dpm++")
    )
    clips = list(generate(model, tokenizer, request, seed=5, batch_size=2))
    again = list(generate(model, tokenizer, request, seed=5, batch_size=2))
    assert all(np.array_equal(a.audio, b.audio) for a, b in zip(clips, again, strict=True))
    assert not np.allclose(clips[0].audio, clips[2].audio)
    snapped = list(generate(model, tokenizer, request, seed=5, snap_codebooks=2, batch_size=2))
    codes = tokenizer.latents_to_codes(clips[1].row, n_codebooks=2)
    assert np.array_equal(snapped[1].audio, tokenizer.decode_codes(codes))
    assert np.array_equal(decode(tokenizer, codes), snapped[1].audio)
    entries = save_clips(iter(clips), tmp_path / "out", RATE)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"samples.json"} | {e[k] for e in entries for k in ("audio", "picture")}
    assert (tmp_path / "out" / "000-rain.png").read_bytes().startswith(b"\x89PNG")


def test_pipeline(model, tokenizer, tmp_path):
    pipe = LatentDiffusionPipeline(model, make_scheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    options = {"seconds": 0.3, "num_inference_steps": 3, "guidance_scale": 2.0}
    out = pipe(["rain", None], generator=seeded(), **options)
    assert out.audios.shape == (2, 1, round(0.3 * RATE))
    assert out.sampling_rate == RATE
    pipe.save_pretrained(tmp_path)
    again = LatentDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(again(["rain", None], generator=seeded(), **options).audios, out.audios)
    # What `generate` does, in one call.
    request = make_request(
        tokenizer, 0.3, labels=["rain", None], guidance_scale=2.0, diffusion=DiffusionSampling(3)
    )
    clips = generate(model, tokenizer, request, seed=0)
    assert np.array_equal(np.stack([clip.audio for clip in clips]), out.audios)
    # Snapped to codes, decoded by the decoder that was finetuned for them.
    snapped = pipe("rain", generator=seeded(), n_codebooks=2, **options)
    codes = tokenizer.quantize(snapped.latents, 2)
    row = {"codes": codes[0].T.numpy(), "num_samples": round(0.3 * RATE)}
    assert np.array_equal(snapped.audios[0], tokenizer.decode_codes(row))
    pipe.scheduler = make_scheduler("dpm++")
    assert not np.allclose(pipe("rain", generator=seeded(), **options).audios[0], out.audios[0])


def test_pipeline_conventions(model, tokenizer):
    pipe = LatentDiffusionPipeline(model, make_scheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    options = {"seconds": 0.2, "num_inference_steps": 2}
    # A generator for each clip makes it independent of the others.
    both = pipe(["rain", "birds"], generator=[seeded(1), seeded(2)], **options)
    alone = pipe("birds", generator=[seeded(2)], **options)
    assert np.allclose(both.audios[1], alone.audios[0], atol=1e-6)
    several = pipe(["rain", "birds"], generator=seeded(), num_waveforms_per_prompt=2, **options)
    four = pipe(["rain", "rain", "birds", "birds"], generator=seeded(), **options)
    assert np.array_equal(several.audios, four.audios)
    noise = torch.randn(four.latents[:1].shape, generator=seeded(5))
    one, other = (pipe("rain", latents=noise, generator=seeded(s), **options) for s in (0, 1))
    assert torch.equal(one.latents, other.latents)
    (audio,) = pipe("rain", latents=noise, output_type="pt", return_dict=False, **options)
    assert torch.equal(audio, torch.from_numpy(one.audios))
    assert torch.equal(pipe("rain", latents=noise, output_type="latent", **options).audios, one[2])
    steps = []

    def silence(_, step, timestep, tensors):
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    zero = pipe("rain", generator=seeded(), callback_on_step_end=silence, **options)
    assert [step for step, _ in steps] == [0, 1]
    mean = tokenizer.latents_mean[:, None]
    assert torch.allclose(zero.latents[0], mean.expand_as(zero.latents[0]))
    for wrong in (
        {"generator": [seeded()] * 3},
        {"latents": noise[..., 1:]},
        {"output_type": "pil"},
        {"num_waveforms_per_prompt": 0},
    ):
        with pytest.raises(REFUSED):
            pipe("rain", **options | wrong)


def test_pipeline_inpaints(model, tokenizer):
    pipe = LatentDiffusionPipeline(model, make_scheduler(), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    wave = tone(0.5)
    out = pipe(
        "rain",
        seconds=0.5,
        num_inference_steps=3,
        generator=seeded(),
        audio=wave,
        sampling_rate=RATE,
        keep_seconds=[(0.0, 0.1), (0.4, 0.5)],
    )
    encoded = tokenizer.encode_latents(wave, sampling_rate=RATE)["latents"]
    found = out.latents[0].T.numpy()
    assert np.array_equal(found[:10], encoded[:10])
    assert np.array_equal(found[40:50], encoded[40:50])
    assert not np.allclose(found[10:40], encoded[10:40], atol=0.1)


def test_refusals(model, tokenizer):
    pipe = LatentDiffusionPipeline(model, make_scheduler(), tokenizer)
    with pytest.raises(ValueError, match="'wind'"):
        pipe("wind")
    with pytest.raises(ValueError, match="'wind'"):
        model.generate_rows(make_request(tokenizer, 1.0, labels=["wind"]), seeded())
    with pytest.raises(ValueError, match="seconds=0"):
        make_request(tokenizer, 0.0)
    for seconds in (1e30, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="seconds="):
            pipe("rain", seconds=seconds)
    with pytest.raises(ValueError, match="both"):
        pipe("rain", audio=tone(0.1))
    with pytest.raises(ValueError, match="labels"):
        GenerationRequest(5, 5, labels=())
    with pytest.raises(ValueError, match=r"2 captions .*1"):
        GenerationRequest(5, 5, captions=("a", "b"))
    with pytest.raises(REFUSED, match=r"heun|solver"):
        DiffusionSampling(solver="heun")
    with pytest.raises(ValueError, match="heads=4"):
        DiffusionTransformer(DIM, 30, 1, 4)
    with pytest.raises(ValueError, match="std"):
        model.set_statistics(torch.zeros(DIM), torch.zeros(DIM))
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        load_model("/nowhere")
    # Another encoder's latents would decode to noise; another decoder's would not.
    own = make_model(tokenizer, fingerprint=encoder_fingerprint(tokenizer))
    LatentDiffusionPipeline(own, make_scheduler(), tokenizer)
    other = make_tokenizer()
    with torch.no_grad():
        next(other.autoencoder.decoder.parameters()).add_(1)
    LatentDiffusionPipeline(own, make_scheduler(), other)
    with torch.no_grad():
        next(other.autoencoder.encoder.parameters()).add_(1)
    with pytest.raises(ValueError, match=encoder_fingerprint(tokenizer)):
        LatentDiffusionPipeline(own, make_scheduler(), other)
