"""A DICOMweb store in memory: as much of QIDO, WADO and STOW as MONAI Label asks of one."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pydicom

BOUNDARY = "part"
RETRIEVE_URL = "00081190"


class Store:
    """The instances of a store; each query for series is answered with the first instance of those that match."""

    def __init__(self, files: Iterable[Path] = ()) -> None:
        self.instances = [pydicom.dcmread(path) for path in files]

    def series(self, filters: dict[str, str]) -> list[pydicom.Dataset]:
        found: dict[str, pydicom.Dataset] = {}
        for one in self.instances:
            if all(str(one.get(name, value)) == value for name, value in filters.items() if name[:1].isupper()):
                found.setdefault(str(one.SeriesInstanceUID), one)
        return list(found.values())

    def of_series(self, uid: str) -> list[pydicom.Dataset]:
        return [one for one in self.instances if str(one.SeriesInstanceUID) == uid]


@contextmanager
def serving(store: Store) -> Iterator[str]:
    """Serve a store on this machine; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path)
            words = path.path.strip("/").split("/")
            if words[-1] == "series":
                filters = {name: values[0] for name, values in parse_qs(path.query).items()}
                self._json([_header(one) for one in store.series(filters)])
            elif words[-1] == "metadata":
                self._json([_header(one) for one in store.of_series(words[-2])])
            else:
                self._parts([_file(one) for one in store.of_series(words[-1])])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = BytesParser().parsebytes(head + body).get_payload()
            new = [pydicom.dcmread(io.BytesIO(part.get_payload(decode=True))) for part in parts]
            store.instances += new
            url = f"http://{self.headers['Host']}/studies/s/series/{new[0].SeriesInstanceUID}/instances/i"
            self._json({"00081199": {"vr": "SQ", "Value": [{RETRIEVE_URL: {"vr": "UR", "Value": [url]}}]}})

        def _json(self, content: object) -> None:
            self._answer("application/dicom+json", json.dumps(content).encode())

        def _parts(self, files: list[bytes]) -> None:
            head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body = b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}--".encode()
            self._answer(f'multipart/related; type="application/dicom"; boundary={BOUNDARY}', body)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def _header(one: pydicom.Dataset) -> dict:
    kept = pydicom.Dataset()
    for element in one:
        if element.keyword != "PixelData":
            kept.add(element)
    return kept.to_json_dict()


def _file(one: pydicom.Dataset) -> bytes:
    written = io.BytesIO()
    one.save_as(written, write_like_original=False)
    return written.getvalue()
