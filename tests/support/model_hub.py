"""A Hugging Face hub for models, on loopback: takes commits by `huggingface_hub`'s protocol, and serves what was pushed.

Create, whoami, preupload, LFS batch and upload, commit; then info, tree and resolve. Of the real hub it lacks Xet: the
client has to have it switched off. `faults` cut or refuse the next request whose path holds a text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tasks.world.hub import git_blob_sha1

LARGE = (".safetensors", ".gguf")


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    """Paths that are kept in LFS."""
    commits: list[str] = field(default_factory=list)
    licence: str = ""

    @property
    def sha(self) -> str:
        return self.commits[-1]

    def commit(self, message: str) -> None:
        state = "".join(f"{p}{hashlib.sha256(b).hexdigest()}" for p, b in sorted(self.files.items()))
        self.commits.append(hashlib.sha1(f"{len(self.commits)}{message}{state}".encode()).hexdigest())


class ModelHub:
    """One account with one token."""

    handler: ClassVar[type]

    def __init__(self, token: str, owner: str = "me"):
        self.token, self.owner = token, owner
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[str, list[int]] = {}
        """Part of a path -> HTTP errors of the next requests that have it; 0: the connection is cut."""
        self.opens = False
        """A server that does not know "visibility", or whose organisation makes everything public."""
        self.echo_token = False
        """A server that repeats the token in its error messages."""
        bound = type("Handler", (self.handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        self.server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def wrote(self) -> list[tuple[str, str]]:
        """The requests that are not mere questions."""
        return [(method, path) for method, path in self.requests if method not in ("GET", "HEAD")]


@contextmanager
def model_hub(token: str, kind: type[ModelHub] = ModelHub):
    """The hub while it runs."""
    hub = kind(token)
    thread = threading.Thread(target=hub.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ModelHub

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.body = self._read()
        for part, codes in self.hub.faults.items():
            if part in path and codes:
                code = codes.pop(0)
                if code == 0:
                    self.close_connection = True
                    self.connection.close()
                else:
                    said = f" for {self.headers.get('Authorization')}" if self.hub.echo_token else ""
                    self.json(code, {"error": f"a fault of the test{said}"})
                return
        self.route(path)

    def route(self, path: str) -> None:
        if path.startswith("/lfs/"):  # signed addresses need no token
            self.take_blob(path.removeprefix("/lfs/"), bool(self.headers.get("Authorization")))
        elif path == "/api/validate-yaml":
            self.json(200, {"errors": [], "warnings": []})
        elif not self.known():
            self.json(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/whoami-v2":
            self.json(200, {"name": self.hub.owner, "type": "user", "orgs": []})
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        else:
            self._of_a_repo(path)

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self, wanted: dict) -> None:
        owner = wanted.get("organization") or self.hub.owner
        name = f"{owner}/{wanted['name']}"
        if owner != self.hub.owner:
            self.json(
                403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
            )
        elif name in self.hub.repos:
            self.json(409, {"error": "You already created this model repo"})
        else:
            repo = self.hub.repos[name] = Repo(
                private=wanted.get("visibility") == "private" and not self.hub.opens
            )
            repo.files[".gitattributes"] = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
            repo.commit("initial commit")
            self.json(200, {"url": f"{self.hub.endpoint}/{name}"})

    def _of_a_repo(self, path: str) -> None:
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?(/.*)?", path)
        repo = self.hub.repos.get(found[1]) if found else None
        if repo is None:
            self.json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        name, rest = found[1], found[2] or ""
        if path.startswith("/api") and rest == "" or rest.startswith("/revision/"):
            self.json(200, self._info(name, repo))
        elif rest.startswith("/tree/"):
            self.json(200, [self._entry(repo, file) | {"type": "file"} for file in repo.files])
        elif rest.startswith("/preupload/"):
            self._preupload(repo, json.loads(self.body))
        elif rest == "/info/lfs/objects/batch":
            self._batch(json.loads(self.body))
        elif rest.startswith("/commit/"):
            self._commit(name, repo)
        elif file := re.fullmatch(r"/resolve/[^/]+/(.+)", rest):
            self._send(repo, file[1])
        else:
            self.json(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})

    def _info(self, name: str, repo: Repo) -> dict:
        files = [{"rfilename": path, **self._entry(repo, path)} for path in repo.files]
        return {"_id": "1", "id": name, "sha": repo.sha, "private": repo.private, "tags": [], "siblings": [
            {("blobId" if key == "oid" else key): value for key, value in file.items()} for file in files
        ]}  # fmt: skip

    @staticmethod
    def _entry(repo: Repo, path: str) -> dict:
        body = repo.files[path]
        entry: dict[str, Any] = {"path": path, "size": len(body), "oid": git_blob_sha1(body)}
        if path in repo.large:
            sha256 = hashlib.sha256(body).hexdigest()
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(body), "pointerSize": 134}
            entry["oid"] = git_blob_sha1(sha256.encode())
        return entry

    def _preupload(self, repo: Repo, asked: dict) -> None:
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": self._entry(repo, file["path"])["oid"] if file["path"] in repo.files else None,
            }
            for file in asked["files"]
        ]
        self.json(200, {"files": answer})

    def _batch(self, asked: dict) -> None:
        objects = []
        for one in asked["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.blobs:
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}", "header": {}}
                }
            objects.append(answer)
        self.json(200, {"transfer": "basic", "objects": objects})

    def take_blob(self, oid: str, with_token: bool) -> None:
        if with_token:
            self.json(400, {"error": "a signed address must not get the token"})
        elif hashlib.sha256(self.body).hexdigest() != oid:
            self.json(400, {"error": "other bytes than announced"})
        else:
            self.hub.blobs[oid] = self.body
            self.json(200, {})

    def _commit(self, name: str, repo: Repo) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        head = lines[0]["value"]
        if head.get("parentCommit") not in (None, repo.sha):
            self.json(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    self.json(400, {"error": f"no such LFS object: {value['oid']}"})
                    return
                files[value["path"]] = self.hub.blobs[value["oid"]]
                repo.large.add(value["path"])
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        repo.files |= files
        repo.commit(head["summary"])
        address = f"{self.hub.endpoint}/{name}/commit/{repo.sha}"
        self.json(200, {"success": True, "commitOid": repo.sha, "commitUrl": address, "hookOutput": ""})

    def _send(self, repo: Repo, path: str) -> None:
        if path not in repo.files:
            self.json(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
            return
        body = repo.files[path]
        etag = self._entry(repo, path)["lfs"]["sha256"] if path in repo.large else git_blob_sha1(body)
        head = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.sha, "Content-Length": str(len(body))}
        self._head(200, head)
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, code: int, value: object, head: dict | None = None) -> None:
        body = json.dumps(value).encode()
        self._head(
            code, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(head or {})}
        )
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, code: int, head: dict) -> None:
        self.send_response(code)
        for key, value in head.items():
            self.send_header(key, value)
        self.end_headers()


ModelHub.handler = Handler


class _ModelScope(Handler):
    """ModelScope's routes: whoami and model by its open API, the rest by the older one."""

    def route(self, path: str) -> None:
        found = re.fullmatch(r"(?:/openapi/v1|/api/v1(?:/repos)?)/models/([^/]+/[^/]+)(/.*)?", path)
        repo = self.hub.repos.get(found[1]) if found else None
        rest = (found[2] or "") if found else ""
        if path.startswith("/lfs/"):
            self.take_blob(
                path.removeprefix("/lfs/"), with_token=False
            )  # its client sends the token there, too
        elif not self.known():
            self.json(
                401,
                {"Code": 401, "Message": f"bad token {self.headers.get('Authorization')}", "Success": False},
            )
        elif path == "/openapi/v1/users/me":
            self.json(200, {"success": True, "data": {"username": self.hub.owner}})
        elif path == "/api/v1/models":
            wanted = json.loads(self.body)
            private = wanted["Visibility"] == 1 and not self.hub.opens
            repo = self.hub.repos[f"{wanted['Path']}/{wanted['Name']}"] = Repo(private)
            repo.licence = wanted["License"]
            self._data({})
        elif repo is None:
            self.json(
                404, {"Code": 10010205001, "Message": "model not found", "Success": False, "success": False}
            )
        elif rest == "":
            self._data({"Visibility": 1 if repo.private else 5, "private": repo.private})
        elif rest == "/repo/files":
            self._data({"Files": [
                {"Path": path, "Name": path, "Type": "blob", "Size": len(body), "Sha256": hashlib.sha256(body).hexdigest()}
                for path, body in repo.files.items()
            ]})  # fmt: skip
        elif rest == "/info/lfs/objects/batch":
            missing = [one for one in json.loads(self.body)["objects"] if one["oid"] not in self.hub.blobs]
            at = self.hub.endpoint
            self._data({"objects": [
                one | {"actions": {"upload": {"href": f"{at}/lfs/{one['oid']}"}}} for one in missing
            ]})  # fmt: skip
        elif rest == "/commit/master":
            asked = json.loads(self.body)
            for one in asked["actions"]:
                large = one["type"] == "lfs"
                repo.files[one["path"]] = (
                    self.hub.blobs[one["sha256"]] if large else base64.b64decode(one["content"])
                )
            repo.commit(asked["commit_message"])
            self._data({})
        else:
            self.json(404, {"Code": 404, "Message": f"no route {path}", "Success": False})

    def _data(self, data: dict) -> None:
        self.json(200, {"Code": 200, "Data": data, "data": data, "Success": True, "success": True})


class ModelScopeHub(ModelHub):
    """The same for `modelscope_hub`."""

    handler = _ModelScope
