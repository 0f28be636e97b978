"""To the Hub in one commit: code, sidecars, tokenizer, weights, model card, and the deletion of what they replace."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx

from .card_magnet import CARD, card_bytes, is_ours, is_readable, read_card, rename_card, with_tags
from .checkpoint_magnet import CheckpointMixin
from .sources_magnet import CheckpointError, first_line
from .writing_magnet import stale_files


class PublishingMixin(CheckpointMixin):
    """`push_to_hub`."""

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: str | Sequence[str] | None = None,
        merge_adapter: bool = False,
        dtype: torch.dtype | str | None = None,
    ) -> Any:
        """Save the model and upload it to a repository of the Hub, which is made where there is none.

        A model card that was written by hand stays, that of the repository first, then that of the directory the model
        came from, unless `model.card` was set; else one is written from the model.

        Args:
            repo_id (`str`): Name on the Hub, such as `me/mine`.
            commit_message (`str`, *optional*): First line of the commit.
            commit_description (`str`, *optional*): Its text.
            private (`bool`, *optional*): Whether a new repository is private; by default the account decides.
            token (`bool` or `str`, *optional*): Who pushes; by default who is logged in.
            revision (`str`, *optional*): Branch to push to, made where there is none.
            create_pr (`bool`, defaults to `False`): Open a pull request instead of committing.
            max_shard_size (`int` or `str`, defaults to `"50GB"`): As in `save_pretrained`.
            tags (`str` or sequence of `str`, *optional*): Further tags of the model card.
            merge_adapter (`bool`, defaults to `False`): As in `save_pretrained`.
            dtype (`torch.dtype` or `str`, *optional*): As in `save_pretrained`.

        Returns:
            `CommitInfo`: of `huggingface_hub`.

        Raises:
            ValueError: the Hub refuses, with its reason, or the model cannot be saved.
        """
        api, tags = HfApi(token=token), [tags] if isinstance(tags, str) else list(tags or ())
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / repo_id.split("/")[-1]
                self.save_pretrained(folder, max_shard_size=max_shard_size, merge_adapter=merge_adapter, dtype=dtype)
                self._prepare_card(folder / CARD, api, repo_id, revision=revision, tags=tags)
                there = [name for name in api.list_repo_files(repo_id, revision=revision) if "/" not in name]
                new = [file.name for file in folder.iterdir() if file.is_file()]
                return api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message or "Upload model",
                    commit_description=commit_description,
                    revision=revision,
                    create_pr=create_pr,
                    # Exact names: a `*` of these patterns would reach into folders.
                    delete_patterns=stale_files(there, new),
                )
        except (httpx.HTTPError, HFValidationError, ConnectionError) as error:
            raise CheckpointError(
                f"{repo_id!r} was not pushed: {first_line(error).removesuffix('.')}. Check the name, the network, and "
                "that the token may write there. No file of the repository was changed."
            ) from error

    def _prepare_card(
        self, file: Path, api: HfApi, repo_id: str, *, revision: str | None, tags: Sequence[str]
    ) -> None:
        """Name the repository in the card; one that a person wrote into the repository stays, unless one was set."""
        text, there = rename_card(read_card(file) or "", repo_id), None
        if self._card is None and api.file_exists(repo_id, CARD, revision=revision):
            there = read_card(Path(api.hf_hub_download(repo_id, CARD, revision=revision)))
            text = text if there is None or is_ours(there) else there
        text = with_tags(text, tags) if tags else text
        file.write_bytes(card_bytes(text))
        if text == there or (self._card is None and not is_readable(text)):
            file.unlink()  # it is there; or the Hub would refuse the whole push for it


__all__ = ["PublishingMixin"]
