"""A real HTTP server on loopback that behaves as badly as it is told to."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Serves `files` by path. `plan` is what it does wrong, request by request; after the last it behaves.

    cut N: closes the connection after N bytes of the body. length N: says the body is N bytes longer than it is, or, where
    N has many digits, N bytes long. no-length, chunked: doesn't say how long it is. no-ranges: sends everything, whatever
    was asked. wrong-range: sends another part. status N: answers N. redirect PATH, loop: sends elsewhere. swap: serves
    `other` from now on. garbage: no HTTP at all. hang: says nothing.
    """

    daemon_threads = True

    def __init__(self, files, plan=(), etag=True):
        self.files, self.plan, self.etag = dict(files), list(plan), etag
        self.other = {}
        self.requests = []  # path and headers of each
        self.done = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients go away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        fault, *rest = (server.plan.pop(0) if server.plan else "well").split()
        value = rest[0] if rest else ""
        self.close_connection = True
        if fault == "swap":
            server.files.update(server.other)
        if fault == "hang":
            server.done.wait(10)
            return
        if fault == "garbage":
            self.wfile.write(b"\x00\x01\x02 this is no HTTP\r\n" * 9)
            return
        if fault in ("redirect", "loop"):
            self.answer(302, {"Location": value or self.path, "Content-Length": 0})
            return
        path = self.path.lstrip("/")
        if fault == "status" or path not in server.files:
            self.answer(int(value or 404), {"Content-Length": 4})
            self.wfile.write(b"oops")
            return
        content = server.files[path]
        etag = f'"{hash(content)}"'
        start = self.start(etag) if fault != "no-ranges" else 0
        if start and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": 0})
            return
        if fault == "wrong-range" and start:
            start -= 1
        body = content[start:]
        headers = {"ETag": etag} if server.etag else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif fault != "no-length":
            headers["Content-Length"] = len(body)
        if fault == "length":
            headers["Content-Length"] = value if len(value) > 99 else len(body) + int(value)
        self.answer(206 if start else 200, headers)
        if fault == "cut":
            body = body[: int(value)]
        if fault == "chunked":
            for place in range(0, len(body), 1000):
                part = body[place : place + 1000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            body = b"0\r\n\r\n"
        self.wfile.write(body)

    def start(self, etag):
        """Where the part that is asked for begins."""
        if self.headers.get("If-Range", etag) != etag:
            return 0
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def answer(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()


@contextmanager
def serving(files, plan=(), **options):
    server = Server(files, plan, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        thread.join()
        server.server_close()
