"""Push a checkpoint to the Hub in one commit, which also deletes the files that it replaces."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ..sources_magnet import CARD, CheckpointError, first_line
from .card import MARK, card_bytes, parse_card, read_card, rename_card, with_tags
from .writing import stale_files

# The base of all errors of the HTTP library in use, which is httpx, or httpx2 from huggingface_hub 2 on.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


def push_model(
    model: Any,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: str | Sequence[str] | None = None,
    **saving: Any,
) -> Any:
    """Implement `MagnetMixin.push_to_hub`."""
    api, tags = HfApi(token=token), [tags] if isinstance(tags, str) else list(tags or ())
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / repo_id.split("/")[-1]
            model.save_pretrained(folder, **saving)
            _prepare_card(model, folder / CARD, api, repo_id, revision=revision, tags=tags)
            present = [name for name in api.list_repo_files(repo_id, revision=revision) if "/" not in name]
            new = [file.name for file in folder.iterdir() if file.is_file()]
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                # Exact names, because a `*` would match files in subfolders, too.
                delete_patterns=stale_files(present, new),
            )
    except (HTTPError, HFValidationError, ConnectionError) as error:
        raise CheckpointError(
            f"{repo_id!r} was not pushed: {first_line(error).removesuffix('.')}. Check the name, the network, and the "
            "token's write permission. No file of the repository was changed."
        ) from error


def _prepare_card(
    model: Any, file: Path, api: HfApi, repo_id: str, *, revision: str | None, tags: Sequence[str]
) -> None:
    """Rename the card to the repository. Unless a card is set on the model, keep a hand-written one there."""
    text, present = rename_card(read_card(file) or "", repo_id), None
    if model._card is None and api.file_exists(repo_id, CARD, revision=revision):
        present = read_card(Path(api.hf_hub_download(repo_id, CARD, revision=revision)))
        text = text if present is None or MARK in present else present
    text = with_tags(text, tags) if tags else text
    file.write_bytes(card_bytes(text))
    # Do not push an unchanged card, nor one with invalid metadata, for which the Hub would reject the whole commit.
    if text == present or (model._card is None and parse_card(text) is None):
        file.unlink()
