"""Further families: each lends `MagnetMixin` its decoder. A family of your own takes as many lines.

Where layers have a sliding window of w, causal mode has the family's: a token sees itself and w - 1 before it. In the
other modes it sees w to either side, as the stock classes do with `is_causal=False`.
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

from .configuration_magnet import check_tokenizer_fits
from .modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin
from .sources_magnet import SOURCE_ARGUMENTS, ModelSource, TokenizerSource, tokenizer_place, wrap_read_errors


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
        """Return the soft limit of the logits' size, where the config has one."""
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
"""The class of each `model_type`; one of your own is added here."""


class AutoMagnetForCausalLM:
    """Opens a checkpoint as the MAGNET class of its family, as the Auto classes of transformers do."""

    @staticmethod
    def family_of(path: str, **arguments: Any) -> type[Any]:
        """Return the MAGNET class for a checkpoint, or for the base of an adapter.

        Args:
            path (`str`): Directory or Hub id.
            arguments: `revision`, `token` and others that say where its config is.

        Raises:
            ValueError: no model there, or a family without a class here.
        """
        source = ModelSource(path, arguments)
        model_type = str((source.adapter_base() or source).config_values().get("model_type"))
        if model_type not in FAMILIES:
            raise ValueError(
                f"{str(path)!r} holds a model of type {model_type!r}; there are MAGNET classes for "
                f"{sorted(FAMILIES)}. Choose one of these, or write its class: `class Mine(MagnetMixin, Theirs)`."
            )
        return FAMILIES[model_type]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Call `from_pretrained` of the family's class.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id.
            args, kwargs: Handed on.
        """
        where = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
        family = cls.family_of(str(pretrained_model_name_or_path), **where)
        return family.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


def open_without_weights(
    path: str, *, revision: str | None = None, gguf_file: str | None = None
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """Read config and tokenizer of a checkpoint, so that what cannot work is refused before its weights are read.

    Raises:
        ValueError: no model there, another family, no tokenizer, or one whose ids the model does not embed.
    """
    given = {"revision": revision, "gguf_file": gguf_file}
    where = {name: value for name, value in given.items() if value is not None}
    family = AutoMagnetForCausalLM.family_of(path, **where)
    source = ModelSource(path, where)
    base = source.adapter_base()
    with wrap_read_errors(f"config.json of {base or source}"):
        config = family.config_class.from_dict((base or source).config_values())
    own = source if base is None else tokenizer_place(base, source)
    with wrap_read_errors(f"The tokenizer of {own}"):
        tokenizer = TokenizerSource(own.path, own.arguments).load()
    check_tokenizer_fits(tokenizer, config.vocab_size)
    return config, tokenizer
