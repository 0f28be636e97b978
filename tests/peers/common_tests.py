"""Run the common tests of transformers on a stock class and on ours, for each family.

`suites.py` copies this file beside the tests of the source package of transformers and runs it there: it imports
them, and nothing of this repository but the model classes.
"""

import unittest
from typing import Any

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modeling_magnet import (
    MagnetGemma3ForCausalLM,
    MagnetLlamaForCausalLM,
    MagnetMistralForCausalLM,
    MagnetQwen3ForCausalLM,
)

from .test_modeling_common import ModelTesterMixin

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "head_dim": 8}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, tuple[Any, dict[str, Any], Any, Any]] = {
    "Llama": (LlamaConfig, {}, LlamaForCausalLM, MagnetLlamaForCausalLM),
    "Mistral": (MistralConfig, {"sliding_window": None}, MistralForCausalLM, MagnetMistralForCausalLM),
    "Qwen3": (Qwen3Config, {}, Qwen3ForCausalLM, MagnetQwen3ForCausalLM),
    "Gemma3": (Gemma3TextConfig, SLIDING, Gemma3ForCausalLM, MagnetGemma3ForCausalLM),
}


class TinyModel:
    """Provide what the common tests need of a model: its config and inputs."""

    batch_size, seq_length, is_training = 3, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    encoder_seq_length = key_length = seq_length
    pad_token_id = 0

    def __init__(self, config_class: Any, own: dict[str, Any]) -> None:
        self.config_class, self.own = config_class, own

    def get_config(self) -> Any:
        """Return a config that the caller may change."""
        return self.config_class(**SIZES, **self.own)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """Return the config and a batch without padding."""
        ids = torch.randint(3, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def prepare_config_and_inputs_for_model_class(self, model_class: Any) -> tuple[Any, dict[str, Any]]:
        """Return the same for every class."""
        return self.prepare_config_and_inputs_for_common()


def _case(config_class: Any, own: dict[str, Any], model_class: Any) -> type:
    """Return the test case of one class."""

    def set_up(self: Any) -> None:
        self.model_tester = TinyModel(config_class, own)

    members = {"setUp": set_up, "all_model_classes": (model_class,), "test_generation_tester_mixin_inheritance": None}
    return type("Case", (ModelTesterMixin, unittest.TestCase), members)


for family, (config_class, own, stock, ours) in FAMILIES.items():
    # Some tests infer the purpose of a class from its name.
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[f"magnet_{family}"] = ours.__name__
    for side, model_class in (("Stock", stock), ("Ours", ours)):
        case = _case(config_class, own, model_class)
        case.__name__ = case.__qualname__ = f"Test{family}{side}"
        globals()[case.__name__] = case
del case  # otherwise it would also be collected under this name
