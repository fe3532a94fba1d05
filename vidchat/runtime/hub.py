"""Files on the Hub: downloaded and uploaded by pattern, so that no other file of a repository is ever fetched.

A repository may hold anything, pickled code too. It is named `owner/name`, or `owner/name@revision` for one of its
branches, tags or commits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_LOG_IN = "log in by `hf auth login`, or set HF_TOKEN"


class HubError(ValueError):
    """What the Hub did not do, why, and the way out, in one sentence."""


def is_hub_name(source: str) -> bool:
    """Returns whether a text is `owner/name` or `owner/name@revision`."""
    return _NAME.fullmatch(source) is not None


def download(source: str, patterns: Sequence[str]) -> Path:
    """Returns the folder of a repository's files; those that are not cached are downloaded.

    Args:
        source: Name of the repository.
        patterns: Patterns of the files to download, such as `video_vae/*.json`.

    Raises:
        HubError: the repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    repository, revision = _split(source)
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the client raises many: offline, not found, gated
        raise HubError(f"{source} is not a local folder, and not to be had from the Hub: {_why(error)}") from error


def upload(
    folder: Path, target: str, patterns: Sequence[str], card: str, private: bool = False, api: Any = None
) -> str:
    """Uploads a folder's files and a model card in one commit; returns the URL of the commit.

    Args:
        folder: Folder that holds the files.
        target: Name of the repository, created if absent; `owner/name@branch` for another branch than `main`.
        patterns: Patterns of the files to upload, as for `download`.
        card: Text of `README.md`.
        private: Whether a new repository is private; otherwise its owner's default holds.
        api: Client, a `huggingface_hub.HfApi`; by default one for the default endpoint.

    Raises:
        HubError: the commit was not made; nothing of it is on the Hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repository, branch = _split(target)
    client = HfApi(library_name="vidchat") if api is None else api
    files = [CommitOperationAdd(name, folder / name) for name in matching(folder, patterns)]
    try:
        client.create_repo(repository, private=private or None, exist_ok=True)
        if branch is not None:
            client.create_branch(repository, branch=branch, exist_ok=True)
        commit = client.create_commit(
            repository,
            [*files, CommitOperationAdd("README.md", card.encode("utf-8"))],
            commit_message=f"Release of vidchat, {len(files)} files and their card",
            revision=branch,
        )
    except Exception as error:  # as above
        raise HubError(f"{folder} is not pushed to {target}: {_why(error)}") from error
    return str(commit.commit_url)


def matching(folder: Path, patterns: Sequence[str]) -> list[str]:
    """Returns the paths of a folder's files that match a pattern, relative to the folder, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern at the pattern's own depth; `fnmatch` alone lets `*` cross a slash."""
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def _split(name: str) -> tuple[str, str | None]:
    """Returns the repository and the revision of a Hub name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise HubError(f"{name} is not a name on the Hub; give owner/name, or owner/name@revision")
    return match[1], match[2]


def _why(error: Exception) -> str:
    """Returns what went wrong and the way out."""
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RevisionNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"access to it must be requested on its page; request it there, and {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; give one of its branches, tags or commits"
    if status == 401:
        return f"it does not exist, or you have no access to it; check the name, and {_LOG_IN}"
    if status == 403:
        return f"your token does not allow it; make one with write access to that owner, and {_LOG_IN}"
    if status == 404:
        return "there is no such repository; check the name"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if status is None and any("Connect" in kind.__name__ or "Timeout" in kind.__name__ for kind in type(error).__mro__):
        return f"the Hub cannot be reached ({lines[0]}); connect, or unset HF_HUB_OFFLINE, and try again"
    return lines[0]
