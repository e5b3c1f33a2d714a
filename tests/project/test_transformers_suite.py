"""The common tests of `transformers` on its models here, adapted by configuration only."""

import re
import unittest
from copy import deepcopy

import torch
from models import make_tokenizer, tone
from peer_suites import leave_out, transformers_suite

from generative import CodecLM, CodecLMConfig
from tokenizer import LatentTokenizer, LatentTokenizerConfig

suite = transformers_suite("test_modeling_common")
configurations = transformers_suite("test_configuration_common")
fitted = make_tokenizer()

LEFT_OUT = {
    "test_hidden_states_output": "it returns audio and codes, as DAC does, and no hidden states",
    "test_retain_grad_hidden_states_attentions": "it computes without gradients",
    "test_model_outputs_equivalence": "it asks for hidden states",
    "test_torch_save_load": "the test itself fails for buffers of booleans: it calls a state dict",
    "test_feed_forward_chunking": "a chunk size is no part of its configuration",
    "test_model_get_set_embeddings": "its input is audio, without embeddings",
    "test_init_weights_can_init_buffers": "weights that are missing are refused, not made up",
    "test_model_weights_reload_no_missing_tied_weights": "weights that are missing are refused",
    "test_bc_torch_dtype": "it takes a minute; test_conventions has all precisions",
}


class FittedTokenizer(LatentTokenizer):
    """The suite makes models of configurations alone, which would be without fitted codebooks."""

    def init_weights(self):
        super().init_weights()
        if self.latents_mean.device.type != "meta":
            self.load_state_dict(fitted.state_dict())


class SmallTokenizer:
    """What the suite asks about a model."""

    batch_size, is_training = 3, False

    def prepare_config_and_inputs_for_common(self):
        clips = [torch.from_numpy(tone(0.4, seed=i)) for i in range(self.batch_size)]
        return deepcopy(fitted.config), {"input_values": torch.stack(clips)}


@leave_out(LEFT_OUT)
class LatentTokenizerSuite(suite.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (FittedTokenizer,)
    test_resize_embeddings = False
    has_attentions = False
    model_tester = SmallTokenizer()

    def test_config(self):
        config = {"config_class": LatentTokenizerConfig, "autoencoder": fitted.config.autoencoder}
        properties = {"has_text_modality": False, "common_properties": ["sampling_rate"]}
        configurations.ConfigTester(self, **properties, **config).run_common_tests()


NOT_IN_THE_DISTRIBUTION = "the tests of `generate` are not in the source distribution"
LEFT_OUT_OF_CODEC_LM = {
    "test_generation_tester_mixin_inheritance": NOT_IN_THE_DISTRIBUTION,
    "test_model_base_model_prefix": "the conditions belong to the whole: no part is loaded alone",
    "test_model_weights_reload_no_missing_tied_weights": "weights that are missing are refused",
    "test_tied_weights_keys": "ids that go in and codes that come out have matrices of their own",
} | {
    name: "the same in float32 is tested"
    for name in dir(suite.ModelTesterMixin)
    if re.match("test_eager_matches_sdpa_inference_.*(fp16|bf16)", name)
}


class SmallLanguageModel:
    """The same of a language model: codes of three clips, in the order of the flatten pattern."""

    batch_size, seq_length, is_training = 3, 7, True
    encoder_seq_length = seq_length + 1  # The class comes first.
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 2

    def get_config(self):
        sizes = {"width": self.hidden_size, "depth": self.num_hidden_layers}
        return CodecLMConfig((16, 16), "flatten", heads=self.num_attention_heads, **sizes)

    def prepare_config_and_inputs_for_common(self):
        shape, generator = (self.batch_size, self.seq_length), torch.Generator().manual_seed(0)
        ids = torch.randint(0, 16, shape, generator=generator)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@leave_out(LEFT_OUT_OF_CODEC_LM)
class CodecLMSuite(suite.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CodecLM,)
    test_resize_embeddings = False  # Its ids follow from the codebooks.
    model_tester = SmallLanguageModel()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})

    def test_config(self):
        properties = {"has_text_modality": False}
        config = {"config_class": CodecLMConfig, "pattern": "flatten"}
        configurations.ConfigTester(self, **properties, **config).run_common_tests()
