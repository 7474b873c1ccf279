"""A real S3 server on the loopback (moto's), with faults that a test puts in front of it."""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

Environ = dict[str, Any]
App = Callable[[Environ, Any], Iterable[bytes]]


@dataclass
class Fault:
    """What happens to some requests instead of, or before, their answer.

    Attributes:
        method: "GET", "PUT", "HEAD"; "" for any.
        part: what the path contains.
        times: to so many of them; then it is over.
        status: answered instead; 0 for none.
        code: of the error in that answer.
        seconds: waited before.
        cut: the body ends after so many bytes, whatever its header says; -1 for all of it.
        lie: the header of a body that was cut says what is left of it.
        before: done before the answer is made.
    """

    method: str = "GET"
    part: str = ""
    times: int = 1
    status: int = 0
    code: str = "InternalError"
    seconds: float = 0.0
    cut: int = -1
    lie: bool = False
    before: Callable[[], None] | None = None
    skip: int = 0  # so many that would fit go by first


@dataclass
class Server:
    """The server, what was asked of it, and the faults to come."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    sent_bytes: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which any S3 client talks to it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "127.0.0.1",
        }

    @property
    def client(self) -> Any:
        """A client that the tests themselves use; independent of the one under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name="us-east-1",
        )

    def gets(self, part: str) -> list[str]:
        """The ranges of the GETs of paths with this part."""
        return [r for method, path, r in self.asked if method == "GET" and part in path]

    def wrap(self, app: App) -> App:
        """The application behind the faults."""

        def call(environ: Environ, start_response: Any) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            # Requests of the tests' own client have no part in it.
            if "Boto3" in environ.get("HTTP_USER_AGENT", ""):
                return app(environ, start_response)
            with self._guard:
                self.asked.append((method, path, environ.get("HTTP_RANGE", "")))
                fault = self._take(method, path)
            if fault is None:
                return self._counted(app(environ, start_response))
            if fault.before is not None:
                fault.before()
            time.sleep(fault.seconds)
            if fault.status:
                body = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>".encode()
                start_response(f"{fault.status} no", [("Content-Length", str(len(body)))])
                return [body]
            return self._cut(app, environ, start_response, fault)

        return call

    def _cut(self, app: App, environ: Environ, start: Any, fault: Fault) -> Iterable[bytes]:
        def lying(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            others = [h for h in headers if h[0].lower() != "content-length"]
            return start(status, [*others, ("Content-Length", str(fault.cut))], *more)

        answer = app(environ, lying if fault.lie else start)
        return answer if fault.cut < 0 else [b"".join(answer)[: fault.cut]]

    def _counted(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        for block in answer:
            self.sent_bytes += len(block)
            yield block

    def _take(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method in ("", method) and fault.part in path:
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[Server]:
    """A server with a bucket "library" in it."""
    server = Server()
    app = server.wrap(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        # moto's storage is that of the process: what another test file left there goes first.
        reset = urllib.request.Request(f"{server.url}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=30).close()
        server.client.create_bucket(Bucket="library")
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
