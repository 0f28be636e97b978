"""What a MAGNET checkpoint stores beyond its base model: one nested dict of `config.json`, validated once."""

import warnings
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from .pooling_magnet import POOLINGS, SIMILARITIES, Pooling, Similarity
from .tokenization_magnet import default_prompts

AttentionMode = Literal["causal", "bidirectional", "infill"]
MODES: tuple[AttentionMode, ...] = ("causal", "bidirectional", "infill")
MASK_TOKEN_CANDIDATES = ("_", "▁_", "<0x5F>")
CONTRASTIVE_HEADS = (None, "tanh")
# Raised by one when settings change their meaning, so that older code cannot read them rightly.
SCHEMA = 1


def check_mode(mode: str) -> None:
    """Refuse a mode that does not exist."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}. Expected one of {', '.join(map(repr, MODES))}.")


@dataclass(kw_only=True)
class MagnetSettings:
    """The settings of one checkpoint, stored as `config.magnet`.

    Args:
        mask_token (`str`, *optional*): Token that hides a context token in masked next-token prediction.
        mask_token_id (`int`, *optional*): Its id; `None` only while no tokenizer is known.
        prompts (`dict[str, str]`): Named prompts of `encode`, put in front by `join_prompt`.
        default_prompt_name (`str`, *optional*): The prompt `encode` uses when none is asked for; `None` for no prompt.
        pooling (`str`, defaults to `"last"`): How `encode` makes one vector of a text's states: see `pool_states`.
        similarity_fn_name (`str`, defaults to `"cosine"`): What `similarity` computes.
        contrastive_head (`str`, *optional*): `"tanh"` when the projection trained with the contrastive loss was kept
            and applies to sentence embeddings; `None` when it was dropped (SimCSE's practice, the default).
        end_of_span (`int`, defaults to 0): m >= 1 where the model was taught to end a fill with EOS inside a gap of a
            multiple of m positions; 0 where a fill is as long as its gap.
        adapter_modes (`list[str]`, *optional*): The modes in which an unmerged adapter is on; `None` for every mode.
        bidirectional_window (`int`, *optional*): How many positions to either side layers with a sliding window see
            outside causal mode, where the base was trained as an encoder of such a window; `None` for as many as the
            window counts.
        schema (`int`): Version of these settings' meaning.

    Raises:
        ValueError: an unknown default prompt, pooling, similarity or head, or a prompt that is not text.

    Example:

        >>> settings = MagnetSettings(mask_token="_", mask_token_id=65)
        >>> MagnetSettings.from_dict(settings.to_dict()) == settings
        True
    """

    mask_token: str | None = None
    mask_token_id: int | None = None
    prompts: dict[str, str] = field(default_factory=default_prompts)
    default_prompt_name: str | None = "sentence"
    pooling: Pooling = "last"
    similarity_fn_name: Similarity = "cosine"
    contrastive_head: str | None = None
    end_of_span: int = 0
    adapter_modes: list[str] | None = None
    bidirectional_window: int | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name, expected in _EXPECTED.items():
            value = getattr(self, name)
            if not _is_valid(name, value):
                raise ValueError(f"`{name}` is {value!r:.60}; expected {expected}.")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(
                f"`default_prompt_name` is {self.default_prompt_name!r}, but the stored prompts are "
                f"{sorted(self.prompts)}. Add it to `prompts` or set `default_prompt_name=None`."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "the configuration") -> "MagnetSettings":
        """Validate the settings of a dict.

        Args:
            values (`dict`): What was stored; keys that are left out have their defaults.
            source (`str`): Where it was stored, for messages.

        Raises:
            ValueError: not a dict, an invalid value, or a key that this schema does not know. Of another schema, such
                keys are left out with a warning.
        """
        if not isinstance(values, dict):
            raise ValueError(f"`magnet` of {source} is {values!r:.60}; expected an object of settings.")
        known = [one.name for one in fields(cls)]
        unknown = sorted(set(values) - set(known))
        schema = values.get("schema", SCHEMA)
        if schema != SCHEMA and _is_count(schema):
            warnings.warn(
                f"The MAGNET settings of {source} were written in schema {schema}; this code reads schema {SCHEMA}. "
                f"They may mean something else, and {unknown} are left out. Update the library, or pin the revision "
                "of the checkpoint that goes with it.",
                stacklevel=2,
            )
            values = {name: value for name, value in values.items() if name in known and name != "schema"}
        elif unknown:
            raise ValueError(
                f"Unknown MAGNET settings {unknown} in {source}; this version knows {known}. Correct the keys of "
                "`magnet` in config.json, or update the library."
            )
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"In the MAGNET settings of {source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict, the inverse of `from_dict`."""
        return asdict(self)

    def encoder_config(self) -> dict[str, Any]:
        """Return the config values by which stock classes read a checkpoint of ours bidirectionally."""
        window = self.bidirectional_window
        return {"is_causal": False} | ({} if window is None else {"sliding_window": window})

    @classmethod
    def of(cls, config: Any) -> "MagnetSettings":
        """Return the settings of a model's config, or the defaults where it has none.

        They were validated when the model was made, and are not again: every forward reads them. `prompts` is the
        config's own dict.

        Args:
            config (`PreTrainedConfig`): Of a model.
        """
        settings = cls.__new__(cls)
        vars(settings).update(getattr(config, "magnet", None) or asdict(cls()))
        return settings

    @classmethod
    def validated(cls, config: Any) -> "MagnetSettings":
        """Validate the settings of a config that no model was made of yet.

        Args:
            config (`PreTrainedConfig`): With some of our settings, or without any.
        """
        return cls.from_dict(getattr(config, "magnet", None) or {}, source=repr(getattr(config, "_name_or_path", "")))

    @classmethod
    def update(cls, config: Any, **values: Any) -> None:
        """Change some settings of a config; where one of them is invalid, raise a ValueError and change none.

        Args:
            config (`PreTrainedConfig`): Of a model.
            values: The settings by name.
        """
        cls.from_dict({**config.magnet, **values})
        config.magnet.update(values)

    def store(self, config: Any) -> None:
        """Replace all settings of a config by these.

        Args:
            config (`PreTrainedConfig`): Of a model.
        """
        config.magnet = self.to_dict()


# What each setting may be; a file that was edited by hand may hold anything.
_EXPECTED = {
    "mask_token": "a string or None",
    "mask_token_id": "an id of the vocabulary, or None",
    "prompts": "strings by name",
    "default_prompt_name": "a string or None",
    "pooling": f"one of {list(POOLINGS)}",
    "similarity_fn_name": f"one of {list(SIMILARITIES)}",
    "contrastive_head": f"one of {CONTRASTIVE_HEADS}",
    "end_of_span": "0, or a multiple such as 32",
    "adapter_modes": f"None or a list of some of {list(MODES)}",
    "bidirectional_window": "a number of positions, or None",
    "schema": f"a whole number, {SCHEMA} for this version",
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "pooling": POOLINGS,
    "similarity_fn_name": SIMILARITIES,
    "contrastive_head": CONTRASTIVE_HEADS,
}


def _is_valid(name: str, value: Any) -> bool:
    """Return whether a setting may have a value, whatever its type."""
    if name in _CHOICES:
        return value in _CHOICES[name]
    if name == "prompts":
        return isinstance(value, dict) and all(isinstance(one, str) for item in value.items() for one in item)
    if name in ("end_of_span", "schema"):
        return _is_count(value)
    if value is None:
        return True
    if name == "adapter_modes":
        return isinstance(value, list | tuple) and all(mode in MODES for mode in value)
    return isinstance(value, str) if name in ("mask_token", "default_prompt_name") else _is_count(value)


def _is_count(value: Any) -> bool:
    """Return whether a value is a whole number of at least 0; `True` is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def resolve_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token: str | None = None) -> tuple[str, int]:
    """Return the token that hides a context token, and its id: the one asked for, the tokenizer's own, or an
    underscore.

    Raises:
        ValueError: no candidate is one real token (`<unk>` is not).

    Source: the paper uses `_` for Llama-2 (section 4.1); other vocabularies spell it differently.
    """
    own = (tokenizer.mask_token,) if tokenizer.mask_token is not None else ()
    candidates = (mask_token,) if mask_token is not None else own + MASK_TOKEN_CANDIDATES
    for token in candidates:
        token_id = tokenizer.convert_tokens_to_ids(token)
        if isinstance(token_id, int) and token_id >= 0 and token_id != tokenizer.unk_token_id:
            return token, token_id
    raise ValueError(
        f"No mask token: none of {list(candidates)} is one token of this vocabulary of {len(tokenizer)} (the unknown "
        "token does not count). Name a rare token of the vocabulary with `mask_token=`."
    )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids the embedding matrix does not have."""
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model embeds {vocab_size}. Pass the model's own "
            "tokenizer; where tokens were added to it, call `model.resize_token_embeddings(len(tokenizer))` first."
        )


def make_causal(config: Any, settings: MagnetSettings, *, opened_as_encoder: bool) -> bool:
    """Turn a base that was trained as an encoder, such as EmbeddingGemma, into the causal decoder below the modes.

    Gemma 3 reads a window of w in such a config as `w // 2` positions to either side. Bidirectional and infill mode
    keep them, as `settings.bidirectional_window`; causal mode gets w back, as the family's causal models have it. Our
    own checkpoints hand sentence-transformers, which opens them with `is_causal: false`, that window, too.

    Returns:
        `bool`: whether the base says that it is an encoder. `config` and `settings` are changed in place.
    """
    # Where the class does not have the field, its decoder does not read it.
    is_encoder = hasattr(type(config), "use_bidirectional_attention") and bool(config.use_bidirectional_attention)
    window = getattr(config, "sliding_window", None)
    if is_encoder:
        config.use_bidirectional_attention = False
        if window is not None and _halves_windows(type(config)):
            settings.bidirectional_window = window - 1
            config.sliding_window = 2 * (window - 1)
    elif opened_as_encoder and settings.bidirectional_window is not None:
        config.sliding_window = 2 * settings.bidirectional_window
    return is_encoder


def _halves_windows(config_class: type[Any]) -> bool:
    """Return whether a family's config changes its window when attention is bidirectional."""
    probe = config_class(sliding_window=64, use_bidirectional_attention=True)
    return bool(probe.sliding_window != 64)
