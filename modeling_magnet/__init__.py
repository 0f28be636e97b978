"""MAGNET models: decoders that generate, encode and infill."""

from .configuration_magnet import MagnetSettings
from .families_magnet import (
    FAMILIES,
    AutoMagnetForCausalLM,
    MagnetGemma3ForCausalLM,
    MagnetMistralForCausalLM,
    MagnetOlmo2ForCausalLM,
    MagnetQwen2ForCausalLM,
    MagnetQwen3ForCausalLM,
    MagnetSmolLM3ForCausalLM,
)
from .infill_options_magnet import InfillOptions
from .infilling_magnet import InfillOutput
from .modeling_magnet import MagnetCausalLMOutput, MagnetLlamaForCausalLM, MagnetMixin
from .pooling_magnet import quantize_embeddings
from .sources_magnet import CheckpointError
from .spans_magnet import Fill
from .words_magnet import OffsetVectors

__version__ = "0.1.0"

__all__ = [
    "FAMILIES",
    "AutoMagnetForCausalLM",
    "CheckpointError",
    "Fill",
    "InfillOptions",
    "InfillOutput",
    "MagnetCausalLMOutput",
    "MagnetGemma3ForCausalLM",
    "MagnetLlamaForCausalLM",
    "MagnetMistralForCausalLM",
    "MagnetMixin",
    "MagnetOlmo2ForCausalLM",
    "MagnetQwen2ForCausalLM",
    "MagnetQwen3ForCausalLM",
    "MagnetSettings",
    "MagnetSmolLM3ForCausalLM",
    "OffsetVectors",
    "quantize_embeddings",
]
