"""The common tests of `transformers` on `LatentTokenizer`, adapted by configuration only."""

import unittest
from copy import deepcopy

import torch
from models import make_tokenizer, tone
from peer_suites import leave_out, transformers_suite

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
