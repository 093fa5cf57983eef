"""A Hub on the loopback device: what huggingface_hub needs to make, write and read repositories.

It keeps repositories in memory as lists of commits, takes the files of models as LFS objects (basic transfer) and all
others inside the commit, checks cards by huggingface_hub's own parser, and shows private repositories to its one user
alone. Faults can be planted. Xet, gated repositories, branches beside main and pull requests are left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub import DatasetCard, ModelCard, SpaceCard

TOKEN = "hf_token_of_the_tests"
OWNER = "ann"
LARGE = (".safetensors", ".parquet", ".model", ".bin")
CARDS = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
REPO = r"/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
ROUTES = {
    r"/api/repos/create": "create",
    r"/api/validate-yaml": "validate",
    rf"/api{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
    rf"/api{REPO}/commit/(?P<revision>[^/]+)": "commit",
    rf"/api{REPO}/tree/(?P<revision>[^/]+)": "tree",
    rf"/api{REPO}(/revision/(?P<revision>[^/]+))?": "info",
    r"/((?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch": "batch",
    r"/lfs/(?P<oid>[0-9a-f]{64})": "put",
    r"/((?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
}


@dataclass
class Repository:
    """A repository: visibility, and its commits as (hash, path -> content), the oldest first."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def at(self, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        if revision in (None, "main"):
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def add(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha


class FakeHub:
    """The server; `repositories` is what it keeps, by (kind, owner/name).

    Attributes:
        faults: Part of a request line such as `POST /api/repos/create` -> the status to answer with, or None to hang
            up in the middle.
        requests: Request lines so far.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: dict[str, int | None] = {}
        self.requests: list[str] = []
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def files(self, repo_id: str, kind: str = "models") -> dict[str, bytes]:
        """Content of the newest commit."""
        return self.repositories[kind, repo_id].commits[-1][1]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request; the route gives the method that answers it."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def answer(self) -> None:
        body = self.read()
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        for part, status in self.hub.faults.items():
            if part in line:
                if status is None:
                    self.close_connection = True
                    return None
                return self.reply({"error": "a fault that was planted"}, status)
        for pattern, name in ROUTES.items():
            match = re.fullmatch(pattern, path)
            if match:
                return getattr(self, name)(body, **{k: v for k, v in match.groupdict().items() if v is not None})
        return self.reply({"error": f"{line} is unknown here"}, 501)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, value: object, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, id: str) -> Repository | None:
        """The repository, if this request may see it; else the answer is given here."""
        found = self.hub.repositories.get((kind, id))
        if found is None or (found.private and not self.is_known):
            self.reply({"error": "Repository not found"}, 404 if self.is_known else 401, X_Error_Code="RepoNotFound")
            return None
        return found

    def revision_of(self, kind: str, id: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repository(kind, id)
        commit = repository.at(revision) if repository else None
        if repository and commit is None:
            self.reply({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        return commit

    def may_write(self, id: str) -> bool:
        if not self.is_known:
            self.reply({"error": "Invalid username or password."}, 401)
        elif id.partition("/")[0] != OWNER:
            self.reply({"error": "You don't have the rights to write here"}, 403)
        else:
            return True
        return False

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        id, kind = f"{asked['organization'] or OWNER}/{asked['name']}", f"{asked.get('type', 'model')}s"
        if not self.may_write(id):
            return
        url = f"{self.hub.address}/{'' if kind == 'models' else kind + '/'}{id}"
        if (kind, id) in self.hub.repositories:
            return self.reply({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[kind, id] = Repository(private)
        self.hub.repositories[kind, id].add({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.reply({"url": url})

    def validate(self, body: bytes) -> None:
        """Check what the Hub is known to check: the types of the keys, and the id of the licence."""
        asked = json.loads(body)
        try:
            data = CARDS[asked["repoType"]](asked["content"], ignore_metadata_errors=False).data
            problems = [] if data.get("license") in {None, *LICENCES} else ['"license" must be one of the known ids']
        except ValueError as error:
            problems = [str(error)]
        errors = [{"message": problem} for problem in problems]
        self.reply({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        if not self.may_write(id) or self.repository(kind, id) is None:
            return
        files = [
            {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False}
            for each in json.loads(body)["files"]
        ]  # fmt: skip
        self.reply({"files": files})

    def batch(self, body: bytes, id: str, kind: str = "models") -> None:
        if not self.may_write(id):
            return
        objects = json.loads(body)["objects"]
        for each in objects:
            if each["oid"] not in self.hub.objects:
                each["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{each['oid']}"}}
        self.reply({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.reply({})

    def commit(self, body: bytes, kind: str, id: str, revision: str) -> None:
        repository = self.repository(kind, id) if self.may_write(id) else None
        if repository is None:
            return
        header, *operations = [json.loads(line) for line in body.splitlines()]
        sha, files = repository.commits[-1]
        if header["value"].get("parentCommit", sha) != sha:
            return self.reply({"error": "A commit has happened since"}, 412)
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        sha = repository.add(files)
        self.reply({"commitUrl": f"{self.hub.address}/{id}/commit/{sha}", "commitOid": sha})

    def info(self, body: bytes, kind: str, id: str, revision: str | None = None) -> None:
        commit = self.revision_of(kind, id, revision)
        if commit is not None:
            siblings = [{"rfilename": path} for path in commit[1]]
            private = self.hub.repositories[kind, id].private
            self.reply({"id": id, "sha": commit[0], "private": private, "siblings": siblings, "tags": []})

    def tree(self, body: bytes, kind: str, id: str, revision: str) -> None:
        commit = self.revision_of(kind, id, revision)
        if commit is not None:
            self.reply([described(path, content) for path, content in commit[1].items()])

    def resolve(self, body: bytes, id: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self.revision_of(kind, id, revision)
        if commit is None:
            return
        if path not in commit[1]:
            return self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(commit[1][path]).hexdigest()
        self.reply(commit[1][path], X_Repo_Commit=commit[0], ETag=f'"{etag}"')


def described(path: str, content: bytes) -> dict:
    """Entry of a listing; large files have the data of their LFS object."""
    oid = hashlib.sha256(content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return {**entry, "lfs": {"oid": oid, "size": len(content), "pointerSize": 134}} if path.endswith(LARGE) else entry
