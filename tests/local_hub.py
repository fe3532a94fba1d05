"""A Hub on this machine, as far as the client of `huggingface_hub` needs one to push files and to load them again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class LocalHub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        commits: Files of each commit by its number, of all repositories: path -> bytes.
        branches: Commit of each (repository, branch).
        status: What every request is refused with instead, such as 403.
        made: What each request to make a repository said.
        asked: Paths of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.status: int | None = None
        self.made: list[dict[str, Any]] = []
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        """Adds files to a branch, and to `main` if it is new; returns the commit's number."""
        before = self.commits.get(self.branches.get((repository, branch), ""), {})
        number = hashlib.sha1(repr(sorted((before | files).items())).encode()).hexdigest()
        self.commits[number] = before | files
        self.branches[repository, branch] = number
        return number


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that answers until the block ends."""
    hub = LocalHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, hub = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.server
        if (parts := self._parts()) is None:
            return
        match parts:
            case ["api", "validate-yaml"]:
                self._json({"warnings": [], "errors": []})
            case ["api", "repos", "create"]:
                hub.made.append(json.loads(body))
                self._json({"url": f"{hub.address}/somebody/thing"})
            case ["api", "models", owner, name, "branch", branch]:
                hub.branches.setdefault((f"{owner}/{name}", branch), hub.commit(f"{owner}/{name}", branch, {}))
                self._json({})
            case ["api", "models", _, _, "preupload", _]:
                how = {"uploadMode": "regular", "shouldIgnore": False}
                self._json({"files": [{"path": file["path"]} | how for file in json.loads(body)["files"]]})
            case ["api", "models", owner, name, "commit", branch]:
                lines = [json.loads(line) for line in body.splitlines()]
                added = [line["value"] for line in lines if line["key"] == "file"]
                files = {value["path"]: base64.b64decode(value["content"]) for value in added}
                number = hub.commit(f"{owner}/{name}", branch, files)
                self._json({"commitUrl": f"{hub.address}/{owner}/{name}/commit/{number}", "commitOid": number})

    def do_GET(self) -> None:
        if (parts := self._parts()) is None:
            return
        owner, name, verb, revision = (parts[1:] if parts[0] == "api" else ["", *parts])[1:5]
        number = self.server.branches.get((f"{owner}/{name}", revision), revision)
        files = self.server.commits.get(number)
        if files is None:
            self._json({"error": "not there"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        elif verb == "revision":
            self._json({"id": f"{owner}/{name}", "sha": number, "siblings": []})
        elif verb == "tree":
            sizes = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]
            self._json(sizes)
        else:
            data = files["/".join(parts[4:])]
            self._send(data, 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": number})

    do_HEAD = do_GET

    def _parts(self) -> list[str] | None:
        """The path's parts; `None` if the request was refused."""
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if self.server.status is not None:
            self._json({"error": "refused"}, self.server.status)
            return None
        return [unquote(part) for part in path.strip("/").split("/")]

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""
