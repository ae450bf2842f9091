"""An object store as the settings name it, against a server that speaks as much S3 as is used."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from treadle.image.blobs import BlobGone, Blobs, open_blobs

OBJECTS: dict[str, bytes] = {}
PARTS: dict[str, dict[int, bytes]] = {}


class S3(BaseHTTPRequestHandler):
    """Objects in memory, whole or in parts, and ranges of them (Amazon S3 API, 2006-03-01)."""

    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        assert "Credential=key-id/" in self.headers["Authorization"]
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        return parts.path, query, self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        path, query, body = self._asked()
        if "uploadId" in query:
            PARTS[query["uploadId"]][int(query["partNumber"])] = body
        else:
            OBJECTS[path] = body
        self._answer(200, ETag='"e"')

    def do_POST(self) -> None:
        path, query, body = self._asked()
        if "uploads" in query:
            PARTS["u1"] = {}
            self._answer(200, b"<InitiateMultipartUploadResult><UploadId>u1</UploadId>"
                              b"</InitiateMultipartUploadResult>")
        elif "uploadId" in query:
            parts = PARTS.pop(query["uploadId"])
            OBJECTS[path] = b"".join(parts[number] for number in sorted(parts))
            self._answer(200, b"<CompleteMultipartUploadResult><ETag>e</ETag>"
                              b"</CompleteMultipartUploadResult>")
        else:
            assert "delete" in query
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            for key in keys:
                OBJECTS.pop(f"{path.rstrip('/')}/{key.decode()}", None)
            done = b"".join(b"<Deleted><Key>" + key + b"</Key></Deleted>" for key in keys)
            self._answer(200, b"<DeleteResult>" + done + b"</DeleteResult>")

    def do_GET(self) -> None:
        path, _, _ = self._asked()
        found = OBJECTS.get(path)
        if found is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = found[int(first):int(last) + 1]
        end = int(first) + len(part) - 1
        self._answer(206, part, Content_Range=f"bytes {first}-{end}/{len(found)}", ETag='"e"',
                     Last_Modified="Wed, 01 Jan 2025 00:00:00 GMT")

    def do_DELETE(self) -> None:
        path, _, _ = self._asked()
        OBJECTS.pop(path, None)
        self._answer(204)

    def log_message(self, *_arguments: Any) -> None:
        return


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[Blobs]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), S3)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    OBJECTS.clear()
    try:
        yield open_blobs(
            "s3://pictures/cloud", tmp_path, endpoint=f"http://127.0.0.1:{server.server_port}",
            region="here", access_key="key-id", secret_key="secret",
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("size", [0, 10, 12 << 20])
def test_a_blob_goes_there_and_comes_back(blobs: Blobs, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = tmp_path / "content"
    file.write_bytes(content)
    blobs.put("some-key", file)
    assert not file.exists()
    assert dict(OBJECTS) == {"/pictures/cloud/some-key": content}
    assert blobs.local("some-key") is None
    if size:
        assert b"".join(blobs.read("some-key", 0, 1 << 62)) == content
        assert b"".join(blobs.read("some-key", 2, 9)) == content[2:9]
    assert list(blobs.read("some-key", 4, 4)) == []
    for _ in range(2):
        blobs.remove("some-key")
    assert not OBJECTS
    with pytest.raises(BlobGone, match="NotFound"):
        list(blobs.read("some-key", 0, 5))
