"""Servers on loopback that behave as ModelScope and as a plain web server do, with the faults of `faulty_hub`."""

from __future__ import annotations

import hashlib
import re
import urllib.parse

from tests.support.faulty_hub import FaultyHandler, FaultyHub


class _ModelScope(FaultyHandler):
    def answer(self):
        url = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(url.query).items()}
        path, hub = query.get("FilePath", ""), self.hub
        self.hub.requests.append((self.command, path or url.path, self.headers.get("Range")))
        base = f"/api/v1/datasets/{hub.dataset}/repo"
        cookie = f"m_session_id={hub.token}" in self.headers.get("Cookie", "")
        if hub.token and not (cookie and self.headers.get("Authorization") == f"Bearer {hub.token}"):
            self.send_json(403, {"Code": 10010205001, "Message": "access denied", "Success": False})
        elif url.path == f"{base}/tree":
            size, number = int(query["PageSize"]), int(query["PageNumber"])
            found = self._tree()[size * (number - 1) : size * number]
            self.send_json(
                200, {"Code": 200, "Data": {"Files": found, "TotalCount": len(found)}, "Success": True}
            )
        elif url.path == base:
            self.send_file(path)
        else:
            self.send_json(404, {"Code": 10010200001, "Message": "dataset not found", "Success": False})

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


class ModelScope(FaultyHub):
    """Lists and serves one data set; files in `unsigned` are listed without a sha256."""

    handler = _ModelScope
    unsigned: frozenset[str] = frozenset()


class _Web(FaultyHandler):
    def answer(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.heads.append(dict(self.headers.items()))
        if moved := re.fullmatch(r"moved/(.+)", path):
            self.send_head(302, {"Location": f"/{moved[1]}", "Content-Length": "0"})
        else:
            self.send_file(path)

    def send_head(self, code, head):
        if self.hub.anonymous:
            head = {key: value for key, value in head.items() if key != "ETag"}
        super().send_head(code, head)


class Web(FaultyHub):
    """A plain web server; `anonymous` servers tell no ETag."""

    handler = _Web
    anonymous = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.heads = []
        """The headers of every request so far."""
