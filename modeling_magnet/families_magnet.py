"""MAGNET classes of further families: each class combines `MagnetMixin` with a stock decoder.

Your own family needs two lines, too. In layers with a sliding window of w, a token sees itself and the w - 1 tokens
before it in causal mode, and w tokens to either side in the other modes, as in the stock classes with
`is_causal=False`.
"""

from typing import Any

from transformers import (
    Gemma3ForCausalLM,
    GenerationMixin,
    MistralForCausalLM,
    Olmo2ForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    SmolLM3ForCausalLM,
)

from .modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin
from .sources_magnet import SOURCE_ARGUMENTS, ModelSource, TokenizerSource, tokenizer_source_of, wrap_read_errors
from .tokenization_magnet import check_tokenizer_fits


class MagnetMistralForCausalLM(MagnetMixin, MistralForCausalLM, GenerationMixin):
    """A Mistral in three modes."""


class MagnetQwen2ForCausalLM(MagnetMixin, Qwen2ForCausalLM, GenerationMixin):
    """A Qwen2 or Qwen2.5 in three modes."""


class MagnetQwen3ForCausalLM(MagnetMixin, Qwen3ForCausalLM, GenerationMixin):
    """A Qwen3 in three modes."""


class MagnetOlmo2ForCausalLM(MagnetMixin, Olmo2ForCausalLM, GenerationMixin):
    """An OLMo 2 in three modes."""


class MagnetSmolLM3ForCausalLM(MagnetMixin, SmolLM3ForCausalLM, GenerationMixin):
    """A SmolLM3 in three modes."""


class MagnetGemma3ForCausalLM(MagnetMixin, Gemma3ForCausalLM, GenerationMixin):
    """A text-only Gemma 3 in three modes."""

    def _softcap(self) -> float | None:
        """Return the soft cap of the logits; `None` if the config has none."""
        cap: float | None = self.config.final_logit_softcapping
        return cap


FAMILIES: dict[str, type[Any]] = {
    str(family.config_class.model_type): family  # type: ignore[union-attr]
    for family in (
        MagnetLlamaForCausalLM,
        MagnetMistralForCausalLM,
        MagnetQwen2ForCausalLM,
        MagnetQwen3ForCausalLM,
        MagnetGemma3ForCausalLM,
        MagnetOlmo2ForCausalLM,
        MagnetSmolLM3ForCausalLM,
    )
}
"""The MAGNET class of each `model_type`. Add the class of your own family here."""


class AutoMagnetForCausalLM:
    """Loads a checkpoint with the MAGNET class of its family, as the Auto classes of transformers do."""

    @staticmethod
    def family_of(path: str, **arguments: Any) -> type[Any]:
        """Return the MAGNET class for a checkpoint, or for the base of an adapter.

        Args:
            path (`str`): Directory or Hub id.
            arguments: `revision`, `token` and others that locate its config.

        Raises:
            ValueError: If there is no model, or its family has no MAGNET class.
        """
        source = ModelSource(path, arguments)
        model_type = str((source.adapter_base() or source).config_values().get("model_type"))
        if model_type not in FAMILIES:
            raise ValueError(
                f"{str(path)!r} contains a model of type {model_type!r}; there are MAGNET classes for "
                f"{sorted(FAMILIES)}. Choose one of these, or define `class Mine(MagnetMixin, Theirs)`."
            )
        return FAMILIES[model_type]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `from_pretrained` of the family's class.

        Args:
            pretrained_model_name_or_path, args, kwargs: As in `MagnetMixin.from_pretrained`.
        """
        where = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
        family = cls.family_of(str(pretrained_model_name_or_path), **where)
        return family.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def open_without_weights(
    path: str, *, revision: str | None = None, gguf_file: str | None = None
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return the config and the tokenizer of a checkpoint, to fail fast without loading the weights.

    Raises:
        ValueError: If there is no model or no tokenizer, the family is unsupported, or tokens exceed embeddings.
    """
    optional = {"revision": revision, "gguf_file": gguf_file}
    where = {name: value for name, value in optional.items() if value is not None}
    family = AutoMagnetForCausalLM.family_of(path, **where)
    source = ModelSource(path, where)
    base = source.adapter_base()
    with wrap_read_errors(f"config.json of {base or source}"):
        config = family.config_class.from_dict((base or source).config_values())
    tokenizer_source = source if base is None else tokenizer_source_of(base, source)
    with wrap_read_errors(f"The tokenizer of {tokenizer_source}"):
        tokenizer = TokenizerSource(tokenizer_source.path, tokenizer_source.arguments).load()
    check_tokenizer_fits(tokenizer, config.vocab_size)
    return config, tokenizer
