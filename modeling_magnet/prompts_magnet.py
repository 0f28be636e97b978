"""Instructions in front of texts: the stored ones, the paper's, and how one is chosen and joined."""

from collections.abc import Mapping
from difflib import get_close_matches

DEFAULT_PROMPT = "Given the sentence, find its representation: "

# The paper's instructions under the names of their MTEB tasks, where its evaluators look for them: first under the
# task's own name, then under its type. Source: Khosla et al. 2025, Table 8.
PAPER_PROMPTS = {
    "STS": "Retrieve semantically similar text: ",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts: ",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles: ",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts: ",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles: ",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles: ",
}


def default_prompts() -> dict[str, str]:
    """What a new checkpoint stores: the prompt of the contrastive training, and the paper's for its tasks."""
    return {"sentence": DEFAULT_PROMPT, **PAPER_PROMPTS}


def join_prompt(prompt: str | None, text: str) -> str:
    """Prompt and text as one string, joined before tokenising.

    A prompt that ends in white space is a template of the caller's own and is used as it is; otherwise a colon is
    added where there is none, and a space.

    Example:

        >>> join_prompt("Retrieve semantically similar text", "A cat.")
        'Retrieve semantically similar text: A cat.'
        >>> join_prompt("Given the sentence, find its representation:", "A cat.")
        'Given the sentence, find its representation: A cat.'
        >>> join_prompt(None, "A cat.")
        'A cat.'
    """
    if not prompt:
        return text
    if prompt[-1].isspace():
        return prompt + text
    return f"{prompt} {text}" if prompt.endswith(":") else f"{prompt}: {text}"


def choose_prompt(
    stored: Mapping[str, str], *, prompt: str | None, prompt_name: str | None, default_prompt_name: str | None
) -> str | None:
    """The prompt of a call: given, named, or the default.

    Args:
        stored (`Mapping[str, str]`): Prompts by name.
        prompt (`str`, *optional*): The prompt itself; `""` for none.
        prompt_name (`str`, *optional*): Name of a stored one.
        default_prompt_name (`str`, *optional*): Used where neither is given; `None` for no prompt.

    Raises:
        ValueError: both were given, one is no string, or the name is unknown.

    Example:

        >>> choose_prompt({"query": "Find: "}, prompt=None, prompt_name="query", default_prompt_name=None)
        'Find: '
    """
    if prompt is not None and prompt_name is not None:
        raise ValueError(f"Both prompt={prompt!r} and prompt_name={prompt_name!r} were given. Choose one.")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise ValueError(f"`prompt` is {type(prompt).__name__} ({prompt!r:.60}); expected a string, '' for none.")
        return prompt
    name = default_prompt_name if prompt_name is None else prompt_name
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueError(f"`prompt_name` is {type(name).__name__} ({name!r:.60}); expected one of {sorted(stored)}.")
    if name not in stored:
        lowered = {stored_name.lower(): stored_name for stored_name in stored}
        close = get_close_matches(name.lower(), lowered, n=1)
        hint = f"Did you mean {lowered[close[0]]!r}? " if close else ""
        raise ValueError(f"No prompt is named {name!r}; the model stores {sorted(stored)}. {hint}Or pass `prompt=`.")
    return stored[name]


__all__ = ["DEFAULT_PROMPT", "PAPER_PROMPTS", "choose_prompt", "default_prompts", "join_prompt"]
