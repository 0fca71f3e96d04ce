"""Look at a site that was built, through a server of this machine that nobody else reaches: `jouleboard build --serve`.

serving.serve(Path("_site"), port=8000)     # prints http://127.0.0.1:8000/ and serves until Ctrl-C
"""

from __future__ import annotations

import functools
import http.server
from pathlib import Path

HOST = "127.0.0.1"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, never from a cache: the next build must be seen."""

    def end_headers(self) -> None:
        """Forbid caches."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Stay silent: the terminal shows the address alone."""


def server(folder: Path, *, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder, on this machine alone; port 0: any that is free."""
    return http.server.ThreadingHTTPServer((HOST, port), functools.partial(_Handler, directory=str(folder)))


def serve(folder: Path, *, port: int) -> None:
    """Serve a folder until Ctrl-C."""
    with server(folder, port=port) as found:
        print(f"http://{HOST}:{found.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            found.serve_forever()
        except KeyboardInterrupt:
            print()
