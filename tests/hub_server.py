"""A Hugging Face hub on the loopback address: what `datasets` asks of the real one, and the ways a network fails."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/datasets/(?P<repository>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^/]+)/?(?P<path>.*))?"
)
FILE = re.compile(r"/datasets/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@contextmanager
def hub(folder: Path, cuts: dict[str, int] | None = None, refused: str = "") -> Iterator[str]:
    """Serve `folder/<owner>/<name>/<commit>/...` as data sets and yield the address for HF_ENDPOINT.

    Branch `main` stands at the commit that is last by name.

    `cuts` counts by file name how many more answers break off in the middle of the body; `refused` is given to nobody.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder, {} if cuts is None else cuts, refused))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, cuts: dict[str, int], refused: str, *arguments):
        self.folder, self.cuts, self.refused = folder, cuts, refused
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := FILE.fullmatch(path):
            self.answer_file(self.commit(found["repository"], found["revision"]), found["path"])
        elif found := API.fullmatch(path):
            root = self.commit(found["repository"], found["revision"] or "main")
            self.answer_api(root, found["kind"] == "tree", found["path"] or "")
        else:
            self.answer(404)

    do_HEAD = do_GET

    def commit(self, repository: str, revision: str) -> Path:
        root = self.folder / repository
        return max(root.iterdir()) if revision == "main" and root.is_dir() else root / revision

    def answer_api(self, root: Path, is_tree: bool, path: str) -> None:
        if not root.parent.is_dir():
            self.answer(401, x_error_code="RepoNotFound")
        elif not root.is_dir():
            self.answer(404, x_error_code="RevisionNotFound")
        elif not (root / path).is_dir():
            self.answer(404, x_error_code="EntryNotFound")
        elif is_tree:
            self.answer(200, json.dumps([entry(file, root) for file in sorted((root / path).iterdir())]).encode())
        else:
            files = [{"rfilename": file.relative_to(root).as_posix()} for file in root.rglob("*") if file.is_file()]
            self.answer(
                200, json.dumps({"id": "/".join(root.parts[-3:-1]), "sha": root.name, "siblings": files}).encode()
            )

    def answer_file(self, root: Path, name: str) -> None:
        path = root / name
        if path.name == self.refused:
            self.answer(403)
            return
        if not path.is_file():
            self.answer(404, x_error_code="EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"etag": f'"{hashlib.sha256(content).hexdigest()}"', "accept_ranges": "bytes"}
        headers["x_repo_commit"] = root.name
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["content_range"] = f"bytes {first}-{last}/{len(content)}"
            self.answer(206, content[first : last + 1], self.cuts_off(path), **headers)
        else:
            self.answer(200, content, **headers)

    def cuts_off(self, path: Path) -> bool:
        self.cuts[path.name] = self.cuts.get(path.name, 0) - 1
        return self.cuts[path.name] >= 0

    def answer(self, status: int, body: bytes = b"{}", is_cut: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass


def entry(path: Path, root: Path) -> dict[str, str | int]:
    kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
    return {"type": kind, "oid": "0" * 40, "size": size, "path": path.relative_to(root).as_posix()}
