"""One directory, two lives: a MAGNET model with remote code, a stock decoder without it, an embedder beside both."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import cached_file

from .configuration_magnet import MagnetSettings, check_tokenizer_fits, resolve_mask_token
from .head_magnet import ContrastiveHead
from .sidecars_magnet import HEAD_WEIGHTS, sidecar_contents, write_sidecars

# A mixin is checked as what it is mixed into.
if TYPE_CHECKING:
    from transformers import PreTrainedModel as _Host
else:
    _Host = object

# What a load says about where its files are; the tokenizer must come from the same place.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
HEAD_PREFIX = "sscl_head."


@dataclass
class TokenizerSource:
    """Where the tokenizer of a model is, and the tokenizer once it was needed."""

    path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None

    def find(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, loaded on first use; `None` where there is none."""
        if self.tokenizer is None and self.path:
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.path, **self.arguments)
            except (OSError, ValueError):
                return None
        return self.tokenizer


def check_is_our_decoder(values: dict[str, Any], *, expected: str, path: str) -> None:
    """Refuse a checkpoint of another architecture before its weights are read.

    Raises:
        ValueError: naming both model types, or that there is no config to read one from.
    """
    if not values:
        raise ValueError(
            f"{path!r} has no config.json, so it holds no model, or one whose saving was interrupted. Name another "
            "directory or Hub id."
        )
    if values.get("model_type") != expected:
        raise ValueError(
            f"{path!r} holds a model of type {values.get('model_type')!r}; this class adapts {expected!r}. "
            "Choose a decoder-only checkpoint of that type, or the MAGNET class of its family."
        )


def move_into_place(finished: Path, target: Path) -> None:
    """Replace a checkpoint directory by a finished one beside it, its `config.json` last.

    The old `config.json` goes first: an interruption leaves the old checkpoint, the new one, or a directory that
    loaders refuse because it has no config, never a mixture.
    """
    if not target.exists():
        finished.rename(target)
        return
    new = sorted(file.relative_to(finished) for file in finished.rglob("*") if file.is_file())
    (target / "config.json").unlink(missing_ok=True)
    for weights in [*target.glob("*.safetensors"), *target.glob("*.safetensors.index.json")]:
        if weights.name.startswith("model") and weights.relative_to(target) not in new:
            weights.unlink()
    for name in sorted(new, key=lambda name: name == Path("config.json")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(finished / name, target / name)


class CheckpointMixin(_Host):
    """`from_pretrained`, `save_pretrained`, and what a checkpoint knows: its settings and its tokenizer."""

    # The contrastive head has a file of its own, so the main weights never hold it.
    _keys_to_ignore_on_load_missing = [r"^sscl_head\."]

    _tokenizer_source: TokenizerSource
    sscl_head: ContrastiveHead

    @property
    def magnet_settings(self) -> MagnetSettings:
        """The validated form of `config.magnet`."""
        return MagnetSettings.from_dict(self.config.magnet)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, mask_token: str | None = None, **kwargs: Any
    ) -> Any:
        """Load a MAGNET checkpoint, or a plain decoder with default settings.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): Directory or Hub id.
            mask_token (`str`, *optional*): For a plain decoder, the token that hides a context token; defaults to
                the tokenizer's own, else to an underscore.
            kwargs: As in transformers. Revision, token and subfolder reach the tokenizer, too.

        Raises:
            ValueError: another architecture, a vocabulary without a mask token, or no tokenizer to look it up in.
        """
        path = str(pretrained_model_name_or_path)
        arguments = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig):
            values = config.to_dict()
        else:
            values, _ = PreTrainedConfig.get_config_dict(path if config is None else config, **arguments)
        check_is_our_decoder(values, expected=getattr(cls.config_class, "model_type", ""), path=path)
        # Before the weights: a missing mask token must not cost the time of loading them.
        source = TokenizerSource(path, arguments)
        settings = MagnetSettings.from_dict(values.get("magnet") or {})
        tokenizer = source.find() if settings.mask_token_id is None or mask_token is not None else None
        if tokenizer is None and mask_token is not None:
            raise ValueError(
                f"mask_token={mask_token!r} was given, but there is no tokenizer at {path!r} to look it up in. Put "
                "the tokenizer's files there, or set `model.tokenizer` after loading."
            )
        if tokenizer is not None:
            settings.mask_token, settings.mask_token_id = resolve_mask_token(tokenizer, mask_token)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.magnet = settings.to_dict()
        model._tokenizer_source = source
        if settings.contrastive_head is not None:
            model.sscl_head.load_state_dict(load_file(str(cached_file(path, HEAD_WEIGHTS, **arguments))))
        return loaded

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint, loaded on first use, or the one that was set.

        Raises:
            ValueError: there is none where the model came from, or one whose ids the model does not embed.
        """
        tokenizer = self._tokenizer_source.find()
        if tokenizer is None:
            raise ValueError(
                f"No tokenizer at {self._tokenizer_source.path!r}, where the model came from. "
                "Set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
            )
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        return tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer_fits(tokenizer, self.config.vocab_size)
        self._tokenizer_source.tokenizer = tokenizer
        if self.config.magnet["mask_token_id"] is None:
            mask_token, mask_token_id = resolve_mask_token(tokenizer)
            self.config.magnet.update(mask_token=mask_token, mask_token_id=mask_token_id)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights, config, code, tokenizer and the sentence-transformers sidecars, all of it or nothing.

        Everything is written to a directory beside the target and then moved into place, `config.json` last. The
        weights are the stock class's and nothing else; a contrastive head that the settings keep has its own file.

        Args:
            save_directory (`str` or `os.PathLike`): Target directory; created, or overwritten file by file.
            is_main_process (`bool`, defaults to `True`): Whether this process writes.
            state_dict (`dict`, *optional*): Weights to write instead of the model's own.
            kwargs: As in transformers (`max_shard_size` and so on).

        Raises:
            ValueError: the target is a file, or `push_to_hub=True`.
        """
        target = Path(save_directory)
        if target.is_file():
            raise ValueError(f"`save_directory` {str(target)!r} is a file; expected a directory. Choose another name.")
        if push_to_hub:
            raise ValueError("`push_to_hub=True` is not supported here. Call `model.push_to_hub(repo_id)` instead.")
        weights = self.state_dict() if state_dict is None else state_dict
        main_weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD_PREFIX)}
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-saving-", dir=target.parent))
        try:
            finished = scratch / "checkpoint"
            super().save_pretrained(finished, is_main_process=is_main_process, state_dict=main_weights, **kwargs)
            if is_main_process:
                self._write_beside_weights(finished, weights)
                move_into_place(finished, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _write_beside_weights(self, directory: Path, weights: dict[str, Any]) -> None:
        """Everything that turns a directory of stock weights into ours."""
        custom_object_save(self, directory)
        config_file = directory / "config.json"
        values = json.loads(config_file.read_text(encoding="utf-8"))
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("transformers.models."))
        ours = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        values["architectures"] = [stock.__name__]
        values["auto_map"] = {"AutoModel": ours, "AutoModelForCausalLM": ours}
        # sentence-transformers drops its override of a key that the file does not have.
        values["is_causal"] = True
        config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tokenizer = self._tokenizer_source.find()
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
        settings = self.magnet_settings
        contents = sidecar_contents(
            hidden_size=self.config.hidden_size,
            settings=settings,
            has_bos=tokenizer is not None and tokenizer.bos_token_id is not None,
            pad_token=None if tokenizer is None else tokenizer.pad_token or tokenizer.eos_token,
        )
        write_sidecars(directory, contents)
        if settings.contrastive_head is not None:
            head = {name[len(HEAD_PREFIX) :]: weights[name] for name in weights if name.startswith(HEAD_PREFIX)}
            save_file({name: tensor.contiguous() for name, tensor in head.items()}, directory / HEAD_WEIGHTS)


__all__ = ["CheckpointMixin", "TokenizerSource"]
