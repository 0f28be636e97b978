"""A repository as the Hub keeps it: files in immutable commits, and branches and tags that point at commits."""

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import PurePosixPath
from types import MappingProxyType

GIT_ATTRIBUTES = ".gitattributes"
LFS_RULE = "filter=lfs diff=lfs merge=lfs -text"
LFS_SUFFIXES = ("bin", "ckpt", "gguf", "h5", "model", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors")


class HubError(Exception):
    """A refusal: a status, a message and the code by which the client chooses its exception."""

    def __init__(self, status: int, message: str, *, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


def git_id(kind: str, content: bytes) -> str:
    """The id git gives a blob, a tree or a commit."""
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class File:
    """Content, and whether git would hold it or only a pointer to it in large file storage (LFS)."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git holds in place of a file in LFS."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @cached_property
    def git_id(self) -> str:
        return git_id("blob", self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        """The name under which clients cache the content."""
        return self.sha256 if self.lfs else self.git_id


@dataclass(frozen=True)
class Put:
    """Add or overwrite a file."""

    path: str
    file: File


@dataclass(frozen=True)
class Delete:
    """Delete a file, or a folder with all that is in it."""

    path: str
    is_folder: bool = False


@dataclass(frozen=True)
class Commit:
    """A state of all files; never changed."""

    files: Mapping[str, File]
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    @cached_property
    def folders(self) -> dict[str, str]:
        """Git's id of every folder; the root is the empty path."""
        entries: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
        parents = {parent for path in self.files for parent in PurePosixPath(path).parents}
        for path, file in self.files.items():
            folder, _, name = path.rpartition("/")
            entries[folder].append((name, "100644", file.git_id))
        ids: dict[str, str] = {}
        for parent in sorted(parents | {PurePosixPath(".")}, key=lambda parent: len(parent.parts), reverse=True):
            folder = "" if not parent.parts else str(parent)
            # Git sorts a folder as if its name ended with a slash.
            rows = sorted(entries[folder], key=lambda entry: entry[0] + ("/" if entry[1] == "40000" else ""))
            tree = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, mode, oid in rows)
            ids[folder] = git_id("tree", tree)
            if folder:
                above, _, name = folder.rpartition("/")
                entries[above].append((name, "40000", ids[folder]))
        return ids

    @cached_property
    def id(self) -> str:
        """40 hexadecimal digits that depend on the files, the history and the message, not on the time."""
        lines = [self.folders[""], self.parent or "", self.author, self.title, "", self.description]
        return git_id("commit", "\n".join(lines).encode())

    def is_lfs(self, path: str) -> bool:
        """Whether the commit's `.gitattributes` send a path to LFS; patterns without a slash fit in any folder."""
        attributes = self.files.get(GIT_ATTRIBUTES, File(b"")).content.decode(errors="replace")
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line.split()]
        return any(fnmatchcase(path if "/" in rule else PurePosixPath(path).name, rule) for rule in patterns)


class Repository:
    """The history of one repository; it begins with a commit that holds `.gitattributes` alone."""

    def __init__(self, *, kind: str, name: str, private: bool, author: str) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.lfs_objects: dict[str, File] = {}  # uploaded content by SHA-256, of a commit or of none yet
        self.tags: dict[str, str] = {}
        self._lock = threading.RLock()
        attributes = "".join(f"*.{suffix} {LFS_RULE}\n" for suffix in LFS_SUFFIXES).encode()
        first = Commit(MappingProxyType({GIT_ATTRIBUTES: File(attributes)}), None, "initial commit", "", author)
        self._commits = {first.id: first}
        self.branches = {"main": first.id}

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a commit id or the first seven digits or more of one."""
        with self._lock:
            known = self.branches.get(revision) or self.tags.get(revision)
            if known is None and re.fullmatch("[0-9a-f]{7,40}", revision):
                found = [commit for commit in self._commits if commit.startswith(revision)]
                known = found[0] if len(found) == 1 else None
            if known is None:
                raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
            return self._commits[known]

    def history(self, revision: str) -> list[Commit]:
        """A commit and those before it, the newest first."""
        commits = [self.find(revision)]
        while commits[-1].parent is not None:
            commits.append(self._commits[commits[-1].parent])
        return commits

    def commit(
        self, branch: str, changes: Iterable[Put | Delete], *, title: str, description: str, author: str, parent: str
    ) -> Commit:
        """Apply all changes to the head of a branch, or none; a `parent` that is not empty must be that head."""
        with self._lock:  # from reading the head to moving it: no commit of another client gets in between
            if branch not in self.branches:
                raise HubError(404, f"Invalid rev id: {branch}", code="RevisionNotFound")
            head = self._commits[self.branches[branch]]
            if not head.id.startswith(parent):
                raise HubError(412, f"A commit has happened since {parent}. Please refresh and try again.")
            files = dict(head.files)
            for change in changes:
                _apply(change, files)
            _check_folders(files)
            _track_lfs(files, head)
            commit = Commit(MappingProxyType(files), head.id, title, description, author)
            self._commits[commit.id] = commit
            self.branches[branch] = commit.id
            return commit

    def create_ref(self, refs: dict[str, str], name: str, revision: str) -> None:
        """Let a new branch or tag point at a commit."""
        if not re.fullmatch(r"(?!refs/)[\w.-]+(/[\w.-]+)*", name) or ".." in name:
            raise HubError(400, f"Invalid name of a branch or tag: {name!r}")
        with self._lock:
            if name in refs:
                raise HubError(409, f"Reference already exists: {name}")
            refs[name] = self.find(revision).id

    def delete_ref(self, refs: dict[str, str], name: str) -> None:
        """Forget a branch or tag; its commits stay."""
        if refs is self.branches and name == "main":
            raise HubError(403, "The branch main cannot be deleted")
        with self._lock:
            if refs.pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", code="RevisionNotFound")


def check_path(path: str) -> str:
    """The path itself, unless it could lead out of the folder into which somebody downloads it."""
    parts = path.split("/")
    if set(parts) & {"", ".", "..", ".git"} or re.search(r"[\\\x00-\x1f]", path):
        raise HubError(400, f"Invalid path in a commit: {path!r}; expected names joined by '/', none of them special")
    return path


def _apply(change: Put | Delete, files: dict[str, File]) -> None:
    """Do what a change says to a dictionary of files."""
    path = check_path(change.path)
    if isinstance(change, Put):
        files[path] = change.file
        return
    deleted = [name for name in files if name.startswith(f"{path}/")] if change.is_folder else [path]
    if not deleted or deleted[0] not in files:
        # The client recognises the first sentence.
        raise HubError(404, f"A file with this name doesn't exist. Path: {path}", code="EntryNotFound")
    for name in deleted:
        del files[name]


def _check_folders(files: Mapping[str, File]) -> None:
    """Refuse a path that is a file and a folder at once, which no disk could hold."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    if both := sorted(folders & set(files)):
        raise HubError(400, f"Both a file and a folder: {', '.join(both)}")


def _track_lfs(files: dict[str, File], head: Commit) -> None:
    """Write files in LFS that no rule of `.gitattributes` covers into it, as the Hub does."""
    attributes = files.get(GIT_ATTRIBUTES, File(b""))
    rules = Commit({GIT_ATTRIBUTES: attributes}, head.id, "", "", "")
    missing = [path for path, file in files.items() if file.lfs and not rules.is_lfs(path)]
    if missing:
        lines = "".join(f"{path} {LFS_RULE}\n" for path in missing)
        files[GIT_ATTRIBUTES] = File(attributes.content + lines.encode())
