"""`CodecLM` called as causal language models of `transformers` are."""

import inspect

import pytest
import torch
from models import REFUSED
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

from generative import CodecLM, CodecLMConfig, CodeSampling

SIZES = (16, 16, 12)
CLASSES = torch.tensor([0, 1, -1])


def make(pattern="flatten", **options) -> CodecLM:
    """Two layers; logits are spread, so that draws are not all alike."""
    torch.manual_seed(0)
    options = {"width": 32, "depth": 2, "heads": 2, "labels": ("speech", "music")} | options
    model = CodecLM(CodecLMConfig(SIZES, pattern, **options)).eval()
    with torch.no_grad():
        model.backbone.lm_head.weight.mul_(25)
        model.conditioner.label.weight.mul_(50)
    return model


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy(model, frames, **options):
    options = {"sampling": CodeSampling(temperature=0), **options}
    return model.sample({"label": CLASSES}, frames, seeded(), **options)


def make_ids(model, lengths=(7, 5, 2)):
    """Codes of three clips, and their sequences with the start."""
    codes = torch.randint(0, min(SIZES), (3, max(lengths), len(SIZES)), generator=seeded(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    tokens = model.pattern.apply(codes, mask)
    start = tokens.new_full((3, 1, tokens.shape[2]), model.pattern.vocabulary.start)
    ids = torch.cat([start, tokens], dim=1)
    return codes, mask, ids[..., 0] if ids.shape[2] == 1 else ids


@pytest.mark.parametrize("pattern", ["flatten", "coarse_first", "parallel", "delay"])
def test_the_loss_is_that_of_training(pattern):
    model = make(pattern)
    codes, mask, ids = make_ids(model)
    output = model(ids, labels=ids, class_labels=CLASSES)
    batch = {"codes": codes, "mask": mask, "label": CLASSES, "ended": torch.ones(3).bool()}
    nats = model.code_nats(batch)
    wanted = (nats.codes.sum() + nats.stops) / (nats.counts.sum() + nats.stop_count)
    torch.testing.assert_close(output.loss, wanted)
    # -100 takes a label out; the logits are those that the loss is of.
    some = ids.masked_fill(torch.rand(ids.shape, generator=seeded()) < 0.5, -100)
    total, count = 0.0, 0
    with torch.no_grad():
        output = model(ids, labels=some, class_labels=CLASSES)
    labels = some if some.ndim == 3 else some[..., None]
    for item, step, stream in (labels[:, 1:] >= 0).nonzero().tolist():
        token = int(labels[item, step + 1, stream])
        if token < model.pattern.vocabulary.pad:
            low, high = next(r for r in model.pattern.vocabulary.ranges if r[0] <= token < r[1])
            total -= float(output.logits[item, step, low:high].log_softmax(-1)[token - low])
            count += 1
    assert float(output.loss) == pytest.approx(total / count, rel=1e-4)


def test_gradients_reach_everything():
    model = make().train()
    _, _, ids = make_ids(model)
    model(ids, labels=ids, class_labels=CLASSES).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_cache_and_left_padding_change_nothing():
    model = make()
    _, _, ids = make_ids(model)
    with torch.no_grad():
        whole = model(ids, class_labels=CLASSES).logits
        first = model(ids[:, :4], class_labels=CLASSES, use_cache=True)
        rest = model(ids[:, 4:], class_labels=CLASSES, past_key_values=first.past_key_values)
        padded = torch.cat([torch.full((3, 2), model.config.pad_token_id), ids], dim=1)
        mask = torch.ones_like(padded)
        mask[:, :2] = 0
        shifted = model(padded, attention_mask=mask, class_labels=CLASSES).logits
        last = model(ids, class_labels=CLASSES, logits_to_keep=2).logits
        logits, *_ = model(ids, class_labels=CLASSES, return_dict=False)
    pieces = torch.cat([first.logits, rest.logits], dim=1)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shifted[:, 2:], whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, whole[:, -2:])
    assert torch.equal(logits, whole)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("use_cache", [True, False])
def test_it_generates_what_sample_does(guidance, use_cache):
    model = make()
    options = {"max_new_tokens": 5 * len(SIZES), "do_sample": False, "use_cache": use_cache}
    options |= {"eos_token_id": None, "guidance_scale": guidance}
    found = model.ids_to_codes(model.generate(class_labels=CLASSES, **options))
    for one, other in zip(found, greedy(model, 5, guidance_scale=guidance), strict=True):
        assert torch.equal(one, other)


def test_it_continues_prompts_of_different_lengths():
    model = make()
    codes = make_ids(model)[0]
    prompts = [codes[0, :2], None, codes[2, :3]]
    wanted = greedy(model, [5, 3, 6], prompts=prompts)
    length = 1 + 3 * len(SIZES)
    ids = torch.full((3, length), model.config.pad_token_id)
    for row, prompt in zip(ids, prompts, strict=True):
        tokens = model.pattern.apply(codes[:1, :0] if prompt is None else prompt[None])[0, :-1, 0]
        row[length - 1 - len(tokens)] = model.config.bos_token_id
        row[length - len(tokens) :] = tokens
    found = model.generate(
        ids,
        attention_mask=(ids != model.config.pad_token_id).long(),
        class_labels=CLASSES,
        max_new_tokens=3 * len(SIZES),
        do_sample=False,
        eos_token_id=None,
    )
    for one, other in zip(model.ids_to_codes(found), wanted, strict=True):
        assert torch.equal(one, other)


def test_draws_are_of_the_codebook_in_turn_and_end_with_a_frame():
    model = make()
    torch.manual_seed(0)
    ids = model.generate(class_labels=CLASSES.repeat(20), max_new_tokens=60, do_sample=True)
    clips = model.ids_to_codes(ids)
    assert {len(clip) for clip in clips} >= {1, 2}
    sizes = torch.tensor(SIZES)
    assert all(bool(((clip >= 0) & (clip < sizes)).all()) for clip in clips)
    several = model.generate(
        class_labels=CLASSES, max_new_tokens=30, num_beams=3, num_return_sequences=2
    )
    assert len(model.ids_to_codes(several)) == 6


class Never(LogitsProcessor):
    """Shuts off one id."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        del input_ids
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


def test_processors_criteria_and_configurations_are_applied():
    model = make()
    config = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=None)
    plain = model.generate(generation_config=config, class_labels=CLASSES)
    never = LogitsProcessorList([Never(int(plain[0, 1]))])
    other = model.generate(None, config, never, class_labels=CLASSES)
    assert not bool((other == plain[0, 1]).any())
    criteria = StoppingCriteriaList([MaxLengthCriteria(4)])
    short = model.generate(None, config, stopping_criteria=criteria, class_labels=CLASSES)
    assert torch.equal(short, plain[:, :4])


def test_auto_classes_and_the_generation_configuration(tmp_path):
    model = make()
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CodecLMConfig)
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, CodecLM)
        assert loaded.generation_config.temperature == 0.5
        assert loaded.generation_config.eos_token_id == model.pattern.vocabulary.stop
    first = next(iter(inspect.signature(model.forward).parameters))
    assert first == model.main_input_name == "input_ids"
    # Models of earlier versions have no such file.
    (tmp_path / "generation_config.json").unlink()
    older = CodecLM.from_pretrained(tmp_path).generation_config
    assert older.bos_token_id == model.pattern.vocabulary.start


def test_what_does_not_fit_is_refused():
    for pattern in ("delay", "parallel", "coarse_first"):
        with pytest.raises(REFUSED, match=pattern):
            make(pattern).generate(max_new_tokens=3)
    with pytest.raises(REFUSED, match="grouped"):
        make("grouped")(torch.zeros(3, 4, 6, dtype=torch.int64))
    model = make()
    with pytest.raises(REFUSED, match=r"\[3, 4, 2\].* 1 tokens"):
        model(torch.zeros(3, 4, 2, dtype=torch.int64))
    ids = make_ids(model)[2]
    with pytest.raises(REFUSED, match="logits_to_keep"):
        model(ids, labels=ids, logits_to_keep=1)
    with pytest.raises(REFUSED, match="start"):
        model.generate(torch.zeros(1, 3, dtype=torch.int64), max_new_tokens=3)
    with pytest.raises(REFUSED, match="cache_implementation"):
        model.generate(max_new_tokens=3, cache_implementation="static")
    with pytest.raises(REFUSED, match=r"4 codes.* 3"):
        model.ids_to_codes(torch.tensor([[model.config.bos_token_id, 1, 2, 3, 4]]))
