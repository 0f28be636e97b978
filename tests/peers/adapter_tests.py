"""The tests of peft for decoders, on stock classes and on ours.

`suites.py` copies this file beside the tests of the source package of peft and runs it there.
"""

import sys
from types import ModuleType

from modeling_magnet import AutoMagnetForCausalLM

# Their helpers name one class of a library for images, which no test of a decoder needs.
_images = ModuleType("diffusers")
_images.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
sys.modules["diffusers"] = _images
from . import test_decoder_models as theirs  # noqa: E402

del sys.modules["diffusers"]


class TestAdaptersStock(theirs.TestDecoderModels):
    """As peft has it: `AutoModelForCausalLM`."""


class TestAdaptersOurs(theirs.TestDecoderModels):
    """The same on the MAGNET class of each family."""

    transformers_class = AutoMagnetForCausalLM
