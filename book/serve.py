"""Show the printed site, `_build/html`, on this machine.

Prints the address and serves until Ctrl-C. Nobody but this machine can reach it.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import socket
import webbrowser
from http import HTTPStatus
from pathlib import Path

from book.errors import BookError

PORT = 8000
TRIES = 20  # ports looked at, one after the other, unless one was asked for


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files as they are now: a rebuilt page must not come from the browser's memory.

    What is not there is answered by the book's own page, as static hosts do.
    """

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        page = Path(self.directory) / "404.html"
        if code != HTTPStatus.NOT_FOUND or not page.is_file():
            return super().send_error(code, message, explain)
        body = page.read_bytes()
        self.send_response(code, message)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, help=f"default: {PORT}, or the next free one")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def main(args: argparse.Namespace) -> int:
    folder = args.root / "_build" / "html"
    if not (folder / "index.html").is_file():
        raise BookError("there is no site yet; python -m book run, then python -m book build")
    server = listen(args.port, functools.partial(Handler, directory=str(folder)))
    address = f"http://localhost:{server.server_port}/"
    print(f"{address}  (Ctrl-C ends)", flush=True)
    if args.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def listen(port: int | None, handler) -> http.server.ThreadingHTTPServer:
    """A server on the port asked for, or on the first free one."""
    if port is not None and not 0 <= port < 65536:
        raise BookError(f"--port {port}: not between 0 and 65535")
    for number in [port] if port is not None else range(PORT, PORT + TRIES):
        # Others on the port refuse us even where the system would let two listen.
        with socket.socket() as probe:
            if number and probe.connect_ex(("127.0.0.1", number)) == 0:
                continue
        try:
            return http.server.ThreadingHTTPServer(("127.0.0.1", number), handler)
        except PermissionError:
            raise BookError(f"--port {port}: ports below 1024 need special rights") from None
        except OSError:
            continue
    where = f"port {port} is" if port is not None else f"ports {PORT} to {PORT + TRIES - 1} are"
    raise BookError(f"{where} taken; choose another with --port")
