"""Servers on loopback that behave as ModelScope and as a plain web server do, with the faults of `hub.Hub`."""

from __future__ import annotations

import hashlib
import re
import urllib.parse

from tasks.world.hub import Hub, _Handler


class _ModelScope(_Handler):
    def _answer(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        path, hub = query.get("FilePath", ""), self.hub
        self.hub.requests.append((self.command, path or url.path, self.headers.get("Range")))
        base = f"/api/v1/datasets/{hub.dataset}/repo"
        cookie = f"m_session_id={hub.token}" in self.headers.get("Cookie", "")
        if hub.token and not (cookie and self.headers.get("Authorization") == f"Bearer {hub.token}"):
            self._json(403, {"Code": 10010205001, "Message": "access denied", "Success": False})
        elif url.path == f"{base}/tree":
            size, number = int(query["PageSize"]), int(query["PageNumber"])
            found = self._tree()[size * (number - 1) : size * number]
            self._json(
                200, {"Code": 200, "Data": {"Files": found, "TotalCount": len(found)}, "Success": True}
            )
        elif url.path == base:
            self._file(path)
        else:
            self._json(404, {"Code": 10010200001, "Message": "dataset not found", "Success": False})

    def _tree(self):
        folders = {path.rpartition("/")[0] for path in self.hub.files} - {""}
        return [{"Path": f, "Name": f, "Type": "tree", "Size": 0} for f in sorted(folders)] + [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob",
                "Size": len(body),
                "Sha256": "" if path in self.hub.unsigned else hashlib.sha256(body).hexdigest(),
                "BlobId": hashlib.sha1(body).hexdigest(),
            }
            for path, body in sorted(self.hub.files.items())
        ]


class ModelScope(Hub):
    """Lists and serves one data set; files in `unsigned` are listed without a sha256."""

    handler = _ModelScope
    unsigned: frozenset[str] = frozenset()


class _Web(_Handler):
    def _answer(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.heads.append(dict(self.headers.items()))
        if moved := re.fullmatch(r"moved/(.+)", path):
            self._head(302, {"Location": f"/{moved[1]}", "Content-Length": "0"})
        else:
            self._file(path)

    def _head(self, code, head):
        if self.hub.anonymous:
            head = {key: value for key, value in head.items() if key != "ETag"}
        super()._head(code, head)


class Web(Hub):
    """A plain web server; `anonymous` servers tell no ETag."""

    handler = _Web
    anonymous = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.heads = []
        """The headers of every request so far."""
