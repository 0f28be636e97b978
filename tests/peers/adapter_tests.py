"""Run the decoder tests of peft on stock classes and on ours.

`suites.py` copies this file beside the tests of the source package of peft and runs it there.
"""

import sys
from types import ModuleType

from modeling_magnet import AutoMagnetForCausalLM

# Their helpers name a class of an image library, which no decoder test needs.
_images = ModuleType("diffusers")
_images.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
sys.modules["diffusers"] = _images
from . import test_decoder_models as theirs  # noqa: E402

del sys.modules["diffusers"]


class TestAdaptersStock(theirs.TestDecoderModels):
    """Test `AutoModelForCausalLM`, as peft does."""


class TestAdaptersOurs(theirs.TestDecoderModels):
    """Test the MAGNET class of each family."""

    transformers_class = AutoMagnetForCausalLM
