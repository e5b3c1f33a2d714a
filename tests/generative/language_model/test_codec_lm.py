"""The codec language model: what it learns, what it generates, and that both agree."""

import inspect
import math

import numpy as np
import pytest
import torch
from models import CODEBOOKS, ENTRIES, REFUSED, make_tokenizer, tone
from transformers import AutoModel
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList

from generative.language_model.codec_lm import CodecLM, CodecLMConfig
from generative.language_model.llama_steps import LlamaSteps
from generative.language_model.patterns import PATTERNS
from generative.protocol import CodeSampling, GenerationRequest, GenerativeModel
from tokenizer.benchmarks.counting import launches

NAMES = sorted(PATTERNS)
# Those that predict the codes of a step independently.
PLAIN = sorted(set(PATTERNS) - {"grouped"})
SIZES = (16, 16, 12, 16)
LABELS = ("speech", "music")


def make(pattern: str = "delay", **options) -> CodecLM:
    """Two layers; logits are spread, so that draws are not all alike."""
    torch.manual_seed(0)
    config = CodecLMConfig(SIZES, pattern, width=32, depth=2, heads=2, labels=LABELS, **options)
    model = CodecLM(config).eval()
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(25)
        model.conditioner.label.weight.mul_(50)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(lengths=(7, 5, 2), seed: int = 0, codebooks: int = 4) -> dict:
    frames = max(lengths)
    codes = torch.randint(0, min(SIZES), (len(lengths), frames, codebooks), generator=seeded(seed))
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    labels = torch.tensor([0, 1, -1, 0, 1][: len(lengths)])
    return {"codes": codes, "mask": mask, "label": labels, "caption": [None] * len(lengths)}


CONDITIONS = {"label": torch.tensor([0, 1, -1])}


def assert_valid(codes: torch.Tensor) -> None:
    assert codes.dtype == torch.int64
    assert bool(((codes >= 0) & (codes < torch.tensor(SIZES))).all())


# Learning


@pytest.mark.parametrize("name", PLAIN)
def test_loss_is_that_of_one_code_after_the_other(name):
    # Reference: probabilities of each token over what its slot may hold, item by item, in float64.
    model, batch = make(name), make_batch()
    found = model.training_loss(batch, seeded())
    vocabulary = model.pattern.vocabulary
    total, count = 0.0, 0
    with torch.no_grad():
        for i, length in enumerate(batch["mask"].sum(1).tolist()):
            tokens = model.pattern.apply(batch["codes"][i : i + 1, :length])
            labels = batch["label"][i : i + 1]
            hidden = model.hidden_states(tokens, *model.conditioner({"label": labels}))
            logits = model.backbone.lm_head(hidden).double()[0]
            codebooks = model.pattern.layout(length).codebooks
            for step, stream in (codebooks >= 0).nonzero().tolist():
                token = int(tokens[0, step, stream])
                # The longest item may be cropped: its end teaches nothing.
                if token == vocabulary.stop and i == 0:
                    continue
                low, high = vocabulary.ranges[int(codebooks[step, stream])]
                total -= float(logits[step, low:high].log_softmax(-1)[token - low])
                count += 1
    # Dropout of the conditions is off for this seed's draws, as the next test relies on too.
    assert count == 14 * 4 + 2
    unhidden = model.code_nats(batch)
    loss = (unhidden.codes.sum() + unhidden.stops) / (unhidden.counts.sum() + unhidden.stop_count)
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-4)
    bits = unhidden.codes.sum().detach() / unhidden.counts.sum() / math.log(2)
    assert 0 < float(bits) < 40
    assert set(found) == {"loss", "bits_per_code", *(f"bits_per_code_{k}" for k in range(4))}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_sampling_predicts_with_the_probabilities_of_training(name, use_cache):
    model, batch = make(name), make_batch((7, 7))
    nats = torch.zeros(4, dtype=torch.float64)
    tokens, pattern = model.pattern.apply(batch["codes"]), model.pattern
    layout = pattern.layout(7)
    with torch.no_grad():
        conditions = {"label": batch["label"]}
        predict = model.step_logits(conditions, len(layout.frames), use_cache=use_cache)
        for step in range(len(layout.frames)):
            slot = predict(tokens[:, :step])
            for draw in pattern.draws:
                logits = slot(tokens[:, step, : draw.start]).double()
                for stream in range(draw.start, draw.stop):
                    k, frame = int(layout.codebooks[step, stream]), layout.frames[step, stream]
                    if k < 0 or frame == 7:
                        continue
                    low, high = pattern.vocabulary.ranges[k]
                    scores = logits[:, low:high].log_softmax(-1)
                    nats[k] -= scores.gather(1, tokens[:, step, stream, None] - low).sum()
        # Both are of full length: as far as is known they did not end there.
        found = model.code_nats(batch).codes
    torch.testing.assert_close(found.double(), nats, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", PLAIN)
def test_every_batch_gives_all_parameters_a_gradient(name):
    # Several processes need not look for parameters without.
    model = make(name)
    model.training_loss(make_batch() | {"label": torch.full((3,), -1)}, seeded())["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_groups_of_any_size(frames):
    model = make("grouped", group_frames=frames)
    model.training_loss(make_batch(), seeded())["loss"].backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert not unused
    prompts = [make_batch()["codes"][0, :2], None, make_batch()["codes"][1, :5]]
    sampling = CodeSampling(stop=True)
    for seed in range(4):
        clips = model.sample(
            CONDITIONS, [6, 4, 9], seeded(seed), sampling=sampling, prompts=prompts
        )
        for clip, prompt, longest in zip(clips, prompts, [6, 4, 9], strict=True):
            assert_valid(clip)
            assert 1 <= len(clip) <= longest
            if prompt is not None:
                assert torch.equal(clip[: len(prompt)], prompt)


def test_a_code_of_a_group_depends_on_those_before_it():
    model = make("grouped")
    with torch.no_grad():
        slot = model.step_logits({"label": torch.tensor([0])}, 1)(torch.zeros(1, 0, 8).long())
        slot(torch.zeros(1, 0).long())
        one = slot(torch.tensor([[3]]))
        slot = model.step_logits({"label": torch.tensor([0])}, 1)(torch.zeros(1, 0, 8).long())
        other = slot(torch.tensor([[4]]))
    low, high = model.pattern.vocabulary.ranges[1]
    assert not torch.allclose(one[:, low:high], other[:, low:high], atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_later_codebooks_change_nothing(name):
    model, batch = make(name), make_batch(codebooks=6)
    other = dict(batch)
    other["codes"] = batch["codes"].masked_fill(~batch["mask"][..., None], 11)
    other["codes"][..., 4:] = 99
    first, second = (model.training_loss(b, seeded())["loss"] for b in (batch, other))
    assert torch.equal(first, second)


def test_the_generator_hides_conditions():
    model = make(condition_dropout=1.0)
    hidden = model.training_loss(make_batch(), seeded())["loss"]
    unconditional = make_batch() | {"label": torch.tensor([-1, -1, -1])}
    assert torch.equal(hidden, model.training_loss(unconditional, seeded())["loss"])
    never = make(condition_dropout=0.0)
    assert not torch.equal(hidden, never.training_loss(make_batch(), seeded())["loss"])


def test_ends_are_learned_only_where_they_are_known():
    model, batch = make(), make_batch((6, 6))
    assert int(model.code_nats(batch).stop_count) == 0
    ended = batch | {"ended": torch.tensor([True, False])}
    assert int(model.code_nats(ended).stop_count) == 1
    assert float(model.code_nats(ended).stops.detach()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_learns_a_pattern(name):
    # Codebook k of frame t is a function of t, the class and k: nothing is left to guess.
    frames = torch.arange(6)[:, None] + torch.arange(4)
    codes = torch.stack([frames % 8, 11 - frames % 8])
    batch = make_batch((6, 6)) | {"codes": codes, "ended": torch.tensor([True, True])}
    model = make(name, condition_dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(100):
        loss = model.training_loss(batch, seeded(step))
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
    assert float(loss["bits_per_code"]) < 0.2
    greedy = CodeSampling(temperature=0, stop=True)
    # It ends where its data ended, though it might go on.
    found = model.sample({"label": batch["label"]}, 9, seeded(), sampling=greedy)
    assert torch.equal(torch.stack(found), codes)


def test_too_few_codebooks_are_refused():
    with pytest.raises(REFUSED, match=r"3 .* 4"):
        make().training_loss(make_batch(codebooks=3), seeded())


# Generating


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_cache_changes_nothing(name, temperature, guidance):
    model = make(name)
    prompts = [make_batch()["codes"][0, :2], None, make_batch()["codes"][1, :5]]
    found = [
        model.sample(
            CONDITIONS,
            [6, 4, 9],
            seeded(1),
            sampling=CodeSampling(temperature=temperature, use_cache=use_cache, stop=True),
            guidance_scale=guidance,
            prompts=prompts,
        )
        for use_cache in (True, False)
    ]
    for cached, plain, prompt in zip(*found, prompts, strict=True):
        assert torch.equal(cached, plain)
        assert_valid(cached)
        if prompt is not None:
            assert torch.equal(cached[: len(prompt)], prompt)


@pytest.mark.parametrize("name", NAMES)
def test_sampled_codes_are_valid_and_as_long_as_asked(name):
    model = make(name)
    for seed in range(5):
        found = model.sample(CONDITIONS, [1, 5, 8], seeded(seed))
        assert [len(codes) for codes in found] == [1, 5, 8]
        for codes in found:
            assert_valid(codes)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_items_one_by_one(name):
    model, greedy = make(name), CodeSampling(temperature=0)
    prompts = [None, make_batch()["codes"][0, :3], None]
    together = model.sample(CONDITIONS, [6, 5, 3], seeded(), sampling=greedy, prompts=prompts)
    for i, length in enumerate([6, 5, 3]):
        conditions = {"label": CONDITIONS["label"][i : i + 1]}
        alone = model.sample(
            conditions, length, seeded(), sampling=greedy, prompts=prompts[i : i + 1]
        )
        assert torch.equal(alone[0], together[i])


class SlotRanges(LogitsProcessor):
    """Shuts off all ids but those that the next slot of a pattern of one stream may hold."""

    def __init__(self, pattern, frames):
        layout, vocabulary = pattern.layout(frames), pattern.vocabulary
        self.ranges = [
            (vocabulary.stop, vocabulary.stop + 1)
            if k == 0 and frame == frames
            else (vocabulary.offsets[k], vocabulary.offsets[k] + pattern.codebook_sizes[k])
            for frame, k in zip(layout.frames[:, 0], layout.codebooks[:, 0].tolist(), strict=True)
        ]

    def __call__(self, input_ids, scores):
        low, high = self.ranges[input_ids.shape[1]]
        ids = torch.arange(scores.shape[1])
        return scores.masked_fill((ids < low) | (ids >= high), -torch.inf)


@pytest.mark.parametrize("name", ["flatten", "coarse_first"])
def test_transformers_generates_the_same(name):
    # An independent loop: GenerationMixin, restricted to the range of each slot.
    model, frames = make(name), 5
    condition, _ = model.conditioner({"label": torch.tensor([0, 1])})
    start = model.embed(torch.full((2, 1, 1), model.pattern.vocabulary.start))
    tokens = model.backbone.generate(
        inputs_embeds=torch.cat([condition, start], dim=1),
        attention_mask=torch.ones(2, 2, dtype=torch.int64),
        logits_processor=LogitsProcessorList([SlotRanges(model.pattern, frames)]),
        max_new_tokens=len(model.pattern.layout(frames).frames),
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=model.pattern.vocabulary.pad,
    )
    assert isinstance(tokens, torch.Tensor)
    codes, mask = model.pattern.revert(tokens[..., None])
    assert mask.all()
    ours = model.sample(
        {"label": torch.tensor([0, 1])}, frames, seeded(), sampling=CodeSampling(temperature=0)
    )
    assert torch.equal(codes, torch.stack(ours))


def test_draws_follow_the_model():
    # The first code of many clips against its probabilities, temperature, top-k and top-p included.
    model = make("parallel")
    count, sampling = 1500, CodeSampling(temperature=1.5, top_k=6, top_p=0.9)
    labels = torch.ones(count, dtype=torch.int64)
    drawn = model.sample({"label": labels}, 1, seeded(), sampling=sampling)
    first = torch.stack(drawn)[:, 0, 0]
    with torch.no_grad():
        tokens = model.pattern.apply(torch.zeros(1, 1, 4, dtype=torch.int64))
        hidden = model.hidden_states(tokens, *model.conditioner({"label": labels[:1]}))
        logits = model.backbone.lm_head(hidden)[0, 0, : SIZES[0]].double() / 1.5
    p = logits.softmax(-1)
    p[p < p.topk(6).values[-1]] = 0
    p /= p.sum()
    order = p.argsort(descending=True)
    # The smallest set that together has the probability: the code that crosses it is kept.
    p[order[p[order].cumsum(0) - p[order] >= 0.9]] = 0
    p /= p.sum()
    frequency = torch.bincount(first, minlength=SIZES[0]).double() / count
    assert bool((frequency[p == 0] == 0).all())
    assert float((frequency - p).abs().max()) < 0.04


def test_the_generator_decides_everything():
    model = make()
    torch.manual_seed(1)
    first = model.sample(CONDITIONS, 5, seeded(4))
    torch.manual_seed(2)
    again = model.sample(CONDITIONS, 5, seeded(4))
    other = model.sample(CONDITIONS, 5, seeded(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_guidance_extrapolates():
    model, greedy = make(), CodeSampling(temperature=0)
    labels = {"label": torch.tensor([0])}
    nothing = {"label": torch.tensor([-1])}
    free = model.sample(nothing, 6, seeded(), sampling=greedy)[0]
    at_zero = model.sample(labels, 6, seeded(), sampling=greedy, guidance_scale=0.0)[0]
    plain = model.sample(labels, 6, seeded(), sampling=greedy)[0]
    strong = model.sample(labels, 6, seeded(), sampling=greedy, guidance_scale=8.0)[0]
    assert torch.equal(at_zero, free)
    assert not torch.equal(plain, free)
    assert not torch.equal(strong, plain)


@pytest.mark.parametrize("name", NAMES)
def test_long_clips_are_generated_in_windows(name):
    model = make(name, context_frames=4)
    prompt = make_batch()["codes"][0]
    found = model.sample(CONDITIONS, [3, 11, 10], seeded(), prompts=[None, None, prompt])
    assert [len(codes) for codes in found] == [3, 11, 10]
    assert torch.equal(found[2][: len(prompt)], prompt)
    for codes in found:
        assert_valid(codes)
    # What a window adds is what the model adds to the half window before it.
    greedy = CodeSampling(temperature=0)
    label = {"label": torch.tensor([1])}
    whole = model.sample(label, 6, seeded(), sampling=greedy)[0]
    start = model.sample(label, 4, seeded(), sampling=greedy)[0]
    assert torch.equal(whole[:4], start)
    rest = model.sample(label, 4, seeded(), sampling=greedy, prompts=[start[2:]])[0]
    assert torch.equal(whole[2:], rest)


def test_steps_are_the_llama_with_padding_inside():
    model = make()
    generator = seeded()
    x = torch.randn(2, 9, 32, generator=generator)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    steps = LlamaSteps(model.backbone.model, mask, 9)
    with torch.no_grad():
        pieces = [steps.advance(part) for part in x.split([4, 1, 3, 1], dim=1)]
        present = torch.cat([mask, mask.new_ones(2, 6)], dim=1)
        reference = model.backbone.model(
            inputs_embeds=x,
            attention_mask=present.long(),
            position_ids=(present.cumsum(1) - 1).clamp(min=0),
        ).last_hidden_state
    found = torch.cat(pieces, dim=1)
    assert torch.allclose(found[present], reference[present], atol=1e-5)
    with pytest.raises(REFUSED, match=r"10 .* 9"):
        steps.advance(x[:, :1])


def test_impossible_requests_are_refused():
    model = make()
    with pytest.raises(REFUSED, match=r"7 .* 2"):
        model.sample(CONDITIONS, 2, seeded(), prompts=[None, make_batch()["codes"][0], None])
    with pytest.raises(REFUSED, match=r"2 .* 3"):
        model.sample(CONDITIONS, [2, 3], seeded())
    with pytest.raises(REFUSED, match=r"\[2, 3\].*\[T, 4\]"):
        model.sample(CONDITIONS, 9, seeded(), prompts=[torch.zeros(2, 3).long(), None, None])
    with pytest.raises(REFUSED, match=r"context_frames.* 1"):
        CodecLMConfig(SIZES, context_frames=1)
    with pytest.raises(REFUSED, match="width=30"):
        CodecLMConfig(SIZES, width=30, heads=4)


# Rows and files


def test_rows_decode_to_audio():
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    options = {"width": 32, "depth": 1, "heads": 2, "labels": LABELS, "gains": {"": 0.3}}
    config = CodecLMConfig.for_tokenizer(tokenizer, n_codebooks=3, **options)
    model = CodecLM(config).eval()
    assert isinstance(model, GenerativeModel)
    assert config.codebook_sizes == [ENTRIES] * 3
    assert CODEBOOKS > 3
    assert config.fingerprint == tokenizer.codes_fingerprint
    samples = 1234
    prompt = tokenizer.encode_codes(tone(0.05), sampling_rate=8000)
    request = GenerationRequest(
        num_frames=tokenizer.autoencoder.num_frames(samples),
        num_samples=samples,
        gain=0.05,
        labels=("music", None),
        prompts=(prompt, None),
    )
    rows = model.generate_rows(request, seeded())
    for row in rows:
        assert row["codes"].dtype == np.int16
        assert tokenizer.decode_codes(row).shape == (1, samples)
    length = len(prompt["codes"])
    assert np.array_equal(rows[0]["codes"][:length], prompt["codes"][:, :3])
    # The prompt's level goes on; without one it is the request's.
    assert rows[0]["gain"] == [pytest.approx(float(prompt["gain"][0]))]
    assert rows[1]["gain"] == [0.05]
    # Else it is that of the training data.
    unsaid = GenerationRequest(request.num_frames, samples, labels=("music",))
    assert model.generate_rows(unsaid, seeded())[0]["gain"] == [0.3]
    with pytest.raises(REFUSED, match="'noise'"):
        model.generate_rows(GenerationRequest(5, 100, labels=("noise",)), seeded())


def test_rows_that_stop_early_decode_too():
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = CodecLM(CodecLMConfig.for_tokenizer(tokenizer, width=32, depth=1, heads=2)).eval()
    with torch.no_grad():
        model.backbone.lm_head.weight.zero_()
    samples = 2000
    frames = tokenizer.autoencoder.num_frames(samples)
    # One first step in seventeen would be a stop, and an empty clip, if that were allowed.
    request = GenerationRequest(frames, samples, labels=(None,) * 60, codes=CodeSampling(stop=True))
    rows = model.generate_rows(request, seeded())
    lengths = {len(row["codes"]) for row in rows}
    assert len(lengths) > 1
    assert min(lengths) >= 1
    for row in rows[:8]:
        audio = tokenizer.decode_codes(row)
        missing = frames - len(row["codes"])
        assert audio.shape[1] == max(samples - missing * tokenizer.hop_length, 1)


@pytest.mark.parametrize("name", ["delay", "coarse_first", "grouped"])
def test_a_saved_model_is_the_same(name, tmp_path):
    model = make(name, context_frames=50, gains={"music": 0.25, "": 0.5})
    model.save_pretrained(tmp_path / "model")
    loaded = CodecLM.from_pretrained(tmp_path / "model").eval()
    assert loaded.labels == LABELS
    assert loaded.gain("music") == 0.25
    assert loaded.gain("speech") == loaded.gain(None) == 0.5
    ours = ("codebook_sizes", "pattern", "width", "depth", "heads", "context_frames", "gains")
    ours += ("group_frames",)
    for key in ours:
        assert getattr(loaded.config, key) == getattr(model.config, key)
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    # Rotary frequencies are not in the file.
    for (key, one), (_, other) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(one, other), key
    with torch.no_grad():
        one, other = (m.training_loss(make_batch(), seeded())["loss"] for m in (model, loaded))
    assert torch.equal(one, other)
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors"]


def test_transformers_conventions(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert isinstance(loaded, CodecLM)
    assert loaded.backbone.config._attn_implementation == "eager"
    assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name
    with torch.no_grad():
        one, other = (m.eval().code_nats(make_batch()).codes for m in (model, loaded))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        CodecLM.from_pretrained(tmp_path / "nothing")
    model = make()
    model.save_pretrained(tmp_path)
    config = model.config.to_dict() | {"depth": 3}
    CodecLMConfig(**config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing_keys"):
        CodecLM.from_pretrained(tmp_path)


# On a GPU


def test_training_waits_for_the_device_as_often_for_any_number_of_codebooks():
    waits = set()
    for count in (1, 2, 4):
        model = CodecLM(CodecLMConfig(SIZES[:count], "delay", width=32, depth=1, heads=2))
        batch = make_batch() | {"label": torch.full((3,), -1)}
        waits.add(launches(lambda: model.training_loss(batch, seeded()), "cpu").waits)  # noqa: B023
    assert len(waits) == 1
