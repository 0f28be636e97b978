"""The settings that a MAGNET checkpoint adds to its base model, stored as one nested dict of `config.json`."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from .tokenization_magnet import check_text

AttentionMode = Literal["causal", "bidirectional", "infill"]
MODES: tuple[AttentionMode, ...] = ("causal", "bidirectional", "infill")
Pooling = Literal["last", "mean", "weighted_mean"]
POOLINGS = get_args(Pooling)
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES = get_args(Similarity)
CONTRASTIVE_HEADS = (None, "tanh")
DEFAULT_PROMPT = "Given the sentence, find its representation: "

# The paper's instructions, under names of MTEB tasks or task types, by which its evaluators select them.
# Source: Khosla et al. 2025, Table 8.
PAPER_PROMPTS = {
    "STS": "Retrieve semantically similar text: ",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts: ",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles: ",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts: ",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles: ",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles: ",
}
# Incremented when a setting changes its meaning, so that older code can warn.
SCHEMA = 1


def check_mode(mode: str) -> None:
    """Raise a `ValueError` if the mode does not exist."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"Unknown mode {mode!r}. Expected one of {', '.join(map(repr, MODES))}.")


def default_prompts() -> dict[str, str]:
    """Return the prompts of a new checkpoint: that of the contrastive training, and those of the paper's tasks."""
    return {"sentence": DEFAULT_PROMPT, **PAPER_PROMPTS}


@dataclass(kw_only=True)
class MagnetSettings:
    """The settings of one checkpoint, stored as `config.magnet`.

    Args:
        mask_token (`str`, *optional*): Token that hides a context token in masked next-token prediction.
        mask_token_id (`int`, *optional*): Id of `mask_token`; `None` until a tokenizer is known.
        prompts (`dict[str, str]`): Named prompts of `encode`; `join_prompt` prepends them.
        default_prompt_name (`str`, *optional*): The prompt that `encode` uses by default; `None` for no prompt.
        pooling (`str`, defaults to `"last"`): How `encode` pools the hidden states of a text: see `pool_states`.
        similarity_fn_name (`str`, defaults to `"cosine"`): The function that `similarity` computes.
        contrastive_head (`str`, *optional*): `"tanh"` if sentence embeddings pass through the projection trained with
            the contrastive loss; `None` if the projection was dropped, as SimCSE does (the default).
        end_of_span (`int`, defaults to 0): m >= 1 if the model was trained to end a fill with EOS within a span whose
            length is a multiple of m; 0 if a fill is as long as its span.
        adapter_modes (`list[str]`, *optional*): The modes in which an unmerged adapter is on; `None` for every mode.
        bidirectional_window (`int`, *optional*): Positions to either side that a sliding-window layer sees outside
            causal mode, if the base was trained as an encoder; `None` for the full `sliding_window`.
        schema (`int`): Version of the meaning of these settings.

    Raises:
        ValueError: If a value is invalid, or the default prompt is not in `prompts`.

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
        for name, (expected, is_valid) in _RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise ValueError(f"`{name}` is {value!r:.60}; expected {expected}.")
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise ValueError(
                f"`default_prompt_name` is {self.default_prompt_name!r}, but the stored prompts are "
                f"{sorted(self.prompts)}. Add it to `prompts` or set `default_prompt_name=None`."
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "the configuration") -> "MagnetSettings":
        """Build validated settings from a dict.

        Args:
            values (`dict`): The stored settings; missing keys take their defaults.
            source (`str`): Name of the source, for messages.

        Raises:
            ValueError: If `values` is not a dict, or has an invalid value or an unknown key. If the dict has another
                schema, unknown keys are dropped with a warning.
        """
        if not isinstance(values, dict):
            raise ValueError(f"`magnet` of {source} is {values!r:.60}; expected an object of settings.")
        known = [setting.name for setting in fields(cls)]
        unknown = sorted(set(values) - set(known))
        schema = values.get("schema", SCHEMA)
        if schema != SCHEMA and _is_count(schema):
            warnings.warn(
                f"The MAGNET settings of {source} were written in schema {schema}; this code reads schema {SCHEMA}. "
                f"Their meaning may differ, and {unknown} are ignored. Update the library, or pin the checkpoint "
                "revision that matches it.",
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

    def choose_prompt(self, *, prompt: str | None, prompt_name: str | None) -> str | None:
        """Return the prompt of an `encode` call.

        Args:
            prompt (`str`, *optional*): The prompt itself; `""` for none.
            prompt_name (`str`, *optional*): Name of a stored prompt; by default the default prompt is returned.

        Raises:
            ValueError: If both were passed, the prompt is not a Unicode string, or the name is unknown.
        """
        if prompt is not None and prompt_name is not None:
            raise ValueError(f"Both prompt={prompt!r} and prompt_name={prompt_name!r} were passed. Choose one.")
        if prompt is not None:
            check_text(prompt, name="prompt")
            return prompt
        name, stored = self.default_prompt_name if prompt_name is None else prompt_name, self.prompts
        if name is not None and (not isinstance(name, str) or name not in stored):
            raise ValueError(f"`prompt_name` is {name!r:.60}; the model stores {sorted(stored)}. Or pass `prompt=`.")
        return None if name is None else stored[name]

    def encoder_config(self) -> dict[str, Any]:
        """Return the config values that make stock classes read a MAGNET checkpoint bidirectionally."""
        window = self.bidirectional_window
        return {"is_causal": False} | ({} if window is None else {"sliding_window": window})

    @classmethod
    def from_config(cls, config: Any) -> "MagnetSettings":
        """Return the settings of a model's config, or the defaults if it has none.

        `prompts` is the dict of the config, not a copy.
        """
        # Every forward reads the settings, and the model validated them when it was built: skip `__post_init__`.
        settings = cls.__new__(cls)
        vars(settings).update(getattr(config, "magnet", None) or asdict(cls()))
        return settings

    @classmethod
    def validated(cls, config: Any) -> "MagnetSettings":
        """Validate the settings of a config before a model is built from it; missing ones take their defaults."""
        return cls.from_dict(getattr(config, "magnet", None) or {}, source=repr(getattr(config, "_name_or_path", "")))

    @classmethod
    def update_config(cls, config: Any, **values: Any) -> None:
        """Change `values` in a config or the content of a config.json, or raise a `ValueError` and change nothing."""
        stored = config["magnet"] if isinstance(config, dict) else config.magnet
        cls.from_dict({**stored, **values})
        stored.update(values)

    def store_in(self, config: Any) -> None:
        """Replace all MAGNET settings of a config by these."""
        config.magnet = self.to_dict()


def _is_count(value: Any) -> bool:
    """Return whether a value is a non-negative integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _are_modes(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(mode in MODES for mode in value))


# What each setting may be, for the message, and the test for it. A config.json edited by hand may hold any type.
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mask_token": ("a string or None", lambda value: isinstance(value, str | None)),
    "mask_token_id": ("an id of the vocabulary, or None", lambda value: value is None or _is_count(value)),
    "prompts": ("a dict of strings by name", _are_prompts),
    "default_prompt_name": ("a string or None", lambda value: isinstance(value, str | None)),
    "pooling": (f"one of {list(POOLINGS)}", lambda value: value in POOLINGS),
    "similarity_fn_name": (f"one of {list(SIMILARITIES)}", lambda value: value in SIMILARITIES),
    "contrastive_head": (f"one of {CONTRASTIVE_HEADS}", lambda value: value in CONTRASTIVE_HEADS),
    "end_of_span": ("0, or a multiple such as 32", _is_count),
    "adapter_modes": (f"None or a list of some of {list(MODES)}", _are_modes),
    "bidirectional_window": ("a number of positions, or None", lambda value: value is None or _is_count(value)),
    "schema": (f"an integer, {SCHEMA} for this version", _is_count),
}


def make_causal(config: Any, settings: MagnetSettings, *, opened_as_encoder: bool) -> bool:
    """Turn the config of a base trained as an encoder, such as EmbeddingGemma, into that of a causal decoder.

    Changes `config` and `settings` in place, and returns whether the base declares itself an encoder.
    """
    # Config classes without the field accept it as an extra attribute, but their decoders do not read it.
    is_encoder = hasattr(type(config), "use_bidirectional_attention") and bool(config.use_bidirectional_attention)
    window = getattr(config, "sliding_window", None)
    if is_encoder:
        config.use_bidirectional_attention = False
        # Such a Gemma 3 config turns a stored window of w into w // 2 + 1, itself included, to either side. The
        # bidirectional modes keep those w // 2 neighbors; causal mode gets w back, as in the causal Gemma 3 models.
        if window is not None and _halves_windows(type(config)):
            settings.bidirectional_window = window - 1
            config.sliding_window = 2 * (window - 1)
    # sentence-transformers opens our checkpoints with `is_causal=False` and the window of the bidirectional modes
    # (see `encoder_config`), so the causal window is derived from it in the same way.
    elif opened_as_encoder and settings.bidirectional_window is not None:
        config.sliding_window = 2 * settings.bidirectional_window
    return is_encoder


def _halves_windows(config_class: type[Any]) -> bool:
    """Return whether the config class changes `sliding_window` if attention is bidirectional."""
    return bool(config_class(sliding_window=64, use_bidirectional_attention=True).sliding_window != 64)
