"""MAGNET models: decoders that generate, encode and infill."""

from .configuration_magnet import MagnetSettings
from .modeling_magnet import MagnetCausalLMOutput, MagnetLlamaForCausalLM, MagnetMixin

__version__ = "0.1.0"

__all__ = ["MagnetCausalLMOutput", "MagnetLlamaForCausalLM", "MagnetMixin", "MagnetSettings"]
