"""Conditions: labels and captions as embeddings, and what is hidden in training."""

import warnings

import pytest
import torch
from models import REFUSED
from transformers import BertConfig, BertModel, BertTokenizer, T5Config, T5EncoderModel

from generative.conditioning import Conditioner, TextEncoder

WIDTH = 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "barks", "loud"]


def make_words():
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), hidden_size=12, **sizes)).save_pretrained(folder)
    make_words().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 16}
    T5EncoderModel(T5Config(vocab_size=len(WORDS), d_model=10, **sizes)).save_pretrained(folder)
    make_words().save_pretrained(folder)
    return str(folder)


def make(**options) -> Conditioner:
    torch.manual_seed(1)
    return Conditioner(WIDTH, labels=("speech", "music"), **options)


def test_labels_have_embeddings_of_their_own():
    conditioner = make()
    embeddings, mask = conditioner({"label": torch.tensor([0, 1, -1, 0])})
    assert embeddings.shape == (4, 1, WIDTH)
    assert bool(mask.all())
    assert torch.equal(embeddings[0], embeddings[3])
    assert len({tuple(row) for row in embeddings[:3, 0].tolist()}) == 3


@pytest.mark.parametrize("kind", ["bert_folder", "t5_folder"])
def test_captions_come_after_the_label_and_padding_changes_nothing(kind, request):
    conditioner = make(text_encoder=request.getfixturevalue(kind))
    labels = torch.tensor([0, -1, 1])
    batch = {"label": labels, "caption": ["a dog", None, "a loud dog barks"]}
    embeddings, mask = conditioner(batch)
    bare, _ = make(text_encoder=request.getfixturevalue(kind))({"label": labels})
    assert torch.equal(embeddings[:, :1], bare)
    assert mask[:, 0].all()
    assert not mask[1, 1:].any()
    assert mask.sum(1).tolist() == [5, 1, 7]
    alone, present = conditioner({"label": labels[:1], "caption": ["a dog"]})
    assert present.all()
    assert torch.allclose(embeddings[0][mask[0]], alone[0], atol=1e-6)
    other, _ = conditioner({"label": labels[:1], "caption": ["a loud"]})
    assert not torch.allclose(other, alone, atol=1e-3)
    assert bool((embeddings[~mask] == 0).all())


def test_hidden_items_are_the_unconditional_ones(bert_folder):
    batch = {"label": torch.tensor([0, 1]), "caption": ["a dog", None]}
    generator = torch.Generator().manual_seed(0)
    all_hidden, mask = make(text_encoder=bert_folder, dropout=1.0)(batch, generator=generator)
    nothing, _ = make(text_encoder=bert_folder)({"label": torch.tensor([-1, -1])})
    assert torch.equal(all_hidden, nothing)
    assert mask.shape == (2, 1)
    # Without a generator nothing is hidden, whatever the mode of the module.
    shown, _ = make(text_encoder=bert_folder, dropout=1.0)(batch)
    assert torch.equal(shown, make(text_encoder=bert_folder)(batch)[0])


def test_the_generator_decides_how_many_are_hidden():
    conditioner = make(dropout=0.25)
    labels = torch.zeros(4000, dtype=torch.int64)
    first, _ = conditioner({"label": labels}, generator=torch.Generator().manual_seed(3))
    again, _ = conditioner({"label": labels}, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    hidden = (first[:, 0] == conditioner.label.weight[0]).all(-1).float().mean()
    assert abs(float(hidden) - 0.25) < 0.03


def test_the_encoder_is_frozen_and_not_part_of_the_model(bert_folder):
    conditioner = make(text_encoder=bert_folder).train()
    embeddings, _ = conditioner({"label": torch.tensor([0]), "caption": ["a dog barks"]})
    embeddings.sum().backward()
    names = set(conditioner.state_dict())
    assert names == {"label.weight", "text.weight", "text.bias", *NORM}
    assert conditioner.text is not None
    assert conditioner.text.weight.grad is not None
    encoder = conditioner.text_encoder
    assert encoder is not None
    assert not encoder.model.training
    assert all(p.grad is None and not p.requires_grad for p in encoder.model.parameters())


NORM = ("text_norm.weight", "text_norm.bias")


def test_an_encoder_may_be_given_as_an_object(bert_folder):
    encoder = TextEncoder.from_pretrained(bert_folder)
    batch = {"label": torch.tensor([-1]), "caption": ["a dog"]}
    by_name, _ = make(text_encoder=bert_folder)(batch)
    as_object, _ = make(text_encoder=encoder)(batch)
    assert torch.equal(by_name, as_object)
    assert encoder.name == bert_folder


def test_long_captions_are_cut(bert_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, mask = make(text_encoder=bert_folder)(
            {"label": torch.tensor([-1]), "caption": ["dog " * 1000]}
        )
    assert mask.shape == (1, 1 + 128)


def test_wrong_conditions_are_refused():
    conditioner = make()
    with pytest.raises(REFUSED, match=r"\[2\]"):
        conditioner({"label": torch.tensor([2])})
    with pytest.raises(REFUSED, match="text_encoder="):
        conditioner({"label": torch.tensor([0]), "caption": ["a dog"]})
    with pytest.raises(REFUSED, match=r"2 captions .*1 labels"):
        conditioner({"label": torch.tensor([0]), "caption": [None, None]})
    with pytest.raises(REFUSED, match="width=-4"):
        Conditioner(-4)
    with pytest.raises(REFUSED, match=r"1\.5"):
        make(dropout=1.5)
