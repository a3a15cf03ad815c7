"""A small model hub on loopback: what huggingface_hub asks the real one, answered alike, with faults on demand.

Small files come from the hub itself, large ones (Git LFS) by a redirect to another host, as from a CDN.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

GOOD, NOT_ACCEPTED, WITHOUT_GATED = "hf_good", "hf_not_accepted", "hf_without_gated"
LARGE = (".safetensors", ".bin", ".pt", ".gguf", "tokenizer.json")
PIECE = 1 << 16  # bytes that are sent at a time


def blob_id(data: bytes) -> str:
    """The name git has for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """A model on the hub.

    Attributes:
        files: by name.
        gated: whether its terms must be accepted; its list of files can be seen by everybody all the same.
        claimed: sizes that the list of files says instead of the true ones.
    """

    files: Mapping[str, bytes]
    gated: bool = False
    claimed: Mapping[str, int] = field(default_factory=dict)
    sha: str = "0123456789abcdef0123456789abcdef01234567"

    def sibling(self, name: str) -> dict[str, Any]:
        """A file as the hub lists it."""
        data = self.files[name]
        listed = {"rfilename": name, "size": self.claimed.get(name, len(data)), "blobId": blob_id(data)}
        if name.endswith(LARGE):
            listed["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": listed["size"], "pointerSize": 134}
        return listed


@dataclass(frozen=True)
class Seen:
    """A request that came: what was asked, with which token and range, and how many bytes of a file went out."""

    method: str
    host: str
    path: str
    token: str | None
    range: str | None
    sent: int


class Hub:
    """The hub's state: its models, the faults wanted, and the requests seen.

    Attributes:
        seen: all requests that were answered, in order.
        cut_after: each download ends after so many bytes, without a word; None: no fault.
        slow: seconds between two pieces of a large file.
        damaged: names of large files of which one byte is wrong.
        status: answered to every request instead of what was asked for.
        page: sent as HTML to every request, as by a hotel's login page.
        ignores_range: large files are always sent whole.
    """

    def __init__(self, models: Mapping[str, Repository]) -> None:
        self.models = dict(models)
        self.seen: list[Seen] = []
        self.cut_after: int | None = None
        self.slow = 0.0
        self.damaged: set[str] = set()
        self.status: int | None = None
        self.page: bytes | None = None
        self.ignores_range = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sent(self, ending: str = "") -> int:
        """Bytes of files whose path ends so that have gone out."""
        return sum(each.sent for each in self.seen if each.path.endswith(ending))

    def fetched(self) -> set[str]:
        """Names of the files that were asked for."""
        return {each.path.rpartition("/")[2] for each in self.seen if "/resolve/" in each.path}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve that hub on loopback until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._sent = 0
        try:
            self._answer()
        except ConnectionError:
            self.close_connection = True
        finally:
            authorization = self.headers.get("Authorization")
            self.hub.seen.append(
                Seen(
                    self.command,
                    self.headers.get("Host", "").partition(":")[0],
                    unquote(urlsplit(self.path).path),
                    authorization and authorization.removeprefix("Bearer "),
                    self.headers.get("Range"),
                    self._sent,
                )
            )

    do_HEAD = do_GET

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if hub.status is not None:
            return self._send(hub.status, {}, b"")
        if hub.page is not None:
            return self._send(200, {"Content-Type": "text/html"}, hub.page)
        if match := re.fullmatch(r"/cdn/(\S+?/\S+?)/(\S+)", path):
            return self._large(hub.models[match[1]].files[match[2]], match[2])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (GOOD, NOT_ACCEPTED, WITHOUT_GATED):
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\S+|/tree/\S+)?", path):
            return self._listing(match[1], (match[2] or "").startswith("/tree/"), bool(token))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(\S+)", path):
            return self._resolve(match[1], match[2], match[3], token)
        return self._refuse(404, None, "Not here")

    def _listing(self, name: str, tree: bool, known: bool) -> None:
        model = self.hub.models.get(name)
        if model is None:
            return self._refuse(*((404, "RepoNotFound", "Repository not found") if known else _WHO_ARE_YOU))
        siblings = [model.sibling(file) for file in model.files]
        if tree:
            listed: Any = [
                {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]}
                | ({"lfs": {"oid": each["lfs"]["sha256"], **each["lfs"]}} if "lfs" in each else {})
                for each in siblings
            ]
        else:
            listed = {"_id": "1", "id": name, "modelId": name, "sha": model.sha, "private": False, "tags": []}
            listed |= {"gated": "auto" if model.gated else False, "disabled": False, "siblings": siblings}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(listed).encode())

    def _resolve(self, name: str, revision: str, file: str, token: str) -> None:
        model = self.hub.models.get(name)
        if model is None:
            return self._refuse(*((404, "RepoNotFound", "Repository not found") if token else _WHO_ARE_YOU))
        if model.gated and token != GOOD:
            words = f"Access to model {name} is restricted"
            if not token:
                return self._refuse(401, "GatedRepo", f"{words}. You must have access to it and be authenticated.")
            if token == WITHOUT_GATED:
                return self._refuse(
                    403, "GatedRepo", "Please enable access to public gated repositories in your fine-grained token"
                )
            return self._refuse(403, "GatedRepo", f"{words} and you are not in the authorized list.")
        if revision not in ("main", model.sha):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in model.files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        data, commit = model.files[file], {"X-Repo-Commit": model.sha}
        if not file.endswith(LARGE):
            return self._send(200, commit | {"ETag": f'"{blob_id(data)}"'}, data)
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        # localhost is another host than 127.0.0.1: a token must not follow there.
        elsewhere = {"Location": f"http://localhost:{self.hub.port}/cdn/{name}/{file}"}
        return self._send(302, commit | linked | elsewhere, b"")

    def _large(self, data: bytes, name: str) -> None:
        if name in self.hub.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, asked = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not self.hub.ignores_range:
            start = int(asked[1])
            if start >= len(data):
                return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        headers = {"Content-Length": str(len(data) - start), "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, headers)
        if self.command == "HEAD":
            return None
        end = len(data) if self.hub.cut_after is None else min(len(data), start + self.hub.cut_after)
        for place in range(start, end, PIECE):
            piece = data[place : min(end, place + PIECE)]
            self.wfile.write(piece)
            self._sent += len(piece)
            time.sleep(self.hub.slow)
        self.close_connection = end < len(data)
        return None

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._head(status, {"Content-Length": str(len(body))} | dict(headers))
        if self.command != "HEAD":
            self.wfile.write(body)
            self._sent += len(body) if "X-Repo-Commit" in headers else 0

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


# What the real one says of a model that does not exist, or is private, to somebody who is not logged in.
_WHO_ARE_YOU = (401, "RepoNotFound", "Invalid username or password.")
