"""A store that speaks S3 on the loopback, and a proxy before it that makes it fail."""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3

_MOTO = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    def log(self, *args): pass

application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
print(server.server_port, flush=True)
# It ends with who started it, however that ends.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
"""
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTER",
    "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Fault = Callable[[str, str], str | None]  # of a method and a path


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Run moto in a process of its own; its endpoint."""
    command = [sys.executable, "-c", _MOTO]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


class Bucket:
    """A bucket, as a client of another make than the one under test sees it."""

    def __init__(self, endpoint: str, name: str) -> None:
        keys = {"aws_access_key_id": "other", "aws_secret_access_key": "other"}
        self.name = name
        self._client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, data: bytes) -> None:
        """Put an object there."""
        self._client.put_object(Bucket=self.name, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        """Read an object whole."""
        return self._client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def names(self) -> list[str]:
        """Name all objects."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


@dataclass
class Proxy:
    """Hands requests on, but for those that `fault` names one for."""

    behind: str
    endpoint: str = ""
    fault: Fault = lambda method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    now: int = 0  # requests that are being answered
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def times(self, n: int, kind: str, method: str, part: str) -> None:
        """Fail in one way the first n times that each such path is asked for."""
        seen: Counter[str] = Counter()

        def fault(asked: str, path: str) -> str | None:
            if asked != method or part not in path:
                return None
            seen[path] += 1
            return kind if seen[path] <= n else None

        self.fault = fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _answer(self) -> None:
        proxy = self.proxy
        with proxy.lock:
            proxy.requests.append((self.command, self.path))
            proxy.now += 1
            proxy.most = max(proxy.most, proxy.now)
            fault = proxy.fault(self.command, self.path)
        try:
            self._answer_with(fault)
        finally:
            with proxy.lock:
                proxy.now -= 1

    def _answer_with(self, fault: str | None) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if fault == "cut put":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault == "slow":
            time.sleep(0.05)
        if fault == "silent":
            time.sleep(4)
            self.close_connection = True
            return
        if fault and fault.isdecimal():
            self._say(int(fault), {}, b"")
            return
        if fault == "a page":
            self._say(200, {"Content-Type": "text/html"}, b"<html><p>please log in</html>")
            return
        status, headers, answer = self._behind(body)
        if fault == "cut get":
            self._say(status, headers, answer[: len(answer) // 2], n_bytes=len(answer))
            self.close_connection = True
            return
        if fault == "unsaid":
            self.close_connection = True
            return
        self._say(status, headers, answer)

    def _behind(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.behind.removeprefix("http://"))
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body=body, headers=dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _say(
        self, status: int, headers: dict[str, str], body: bytes, *, n_bytes: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = len(body) if n_bytes is None else n_bytes
        if self.command == "HEAD":
            length = int({k.lower(): v for k, v in headers.items()}.get("content-length", 0))
        self.send_header("Content-Length", str(length))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def proxied(behind: str) -> Iterator[Proxy]:
    """Run a proxy before a store."""
    proxy = Proxy(behind)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # a connection that was cut on purpose
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
