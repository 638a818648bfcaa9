import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shiftproof.data.downloads import http


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Served:
    """A file as a server that may misbehave sends it."""

    content: bytes
    breaks_after: int | None = None  # closes the connection after so many bytes of every answer
    ignores_range: bool = False
    announces: int | None = None  # a length that is not the true one
    hides_length: bool = False  # when it is asked for what lies behind the end
    status: int = 200


@dataclass
class Server:
    """A server on this machine: what it has, and what it was asked for."""

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)

    def serve(self, name: str, content: bytes, **behaviour: object) -> str:
        self.files[f"/{name}"] = Served(content, **behaviour)
        return f"{self.url}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "_PAUSE_SECONDS", 0)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.ranges.append(self.headers["Range"])
            served = here.files.get(self.path.partition("?")[0])
            if served is None or served.status != 200:
                self.send_error(404 if served is None else served.status)
                return
            start = 0
            if self.headers["Range"] and not served.ignores_range:
                start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            total = len(served.content) if served.announces is None else served.announces
            if start and start >= total:
                self.send_response(416)
                if not served.hides_length:
                    self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(total - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            rest = served.content[start:]
            self.wfile.write(rest if served.breaks_after is None else rest[: served.breaks_after])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        here = Server(f"http://127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield here
        listening.shutdown()
        thread.join()
