"""A Unix socket in front of a server that answers later, as one in another room does."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path


def _pump(source: socket.socket, sink: socket.socket, seconds: float) -> None:
    while data := source.recv(1 << 20):
        # A sleep of the kernel is some 60 µs longer than asked for; what is left is waited out.
        due = time.perf_counter() + seconds
        if seconds > 0.0001:
            time.sleep(seconds - 0.0001)
        while time.perf_counter() < due:
            pass
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)


def main(listen: str, target: str, microseconds: str) -> None:
    """Pass on connections to `listen` to `target`, each request late by so much."""
    Path(listen).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listen)
        server.listen()
        Path(listen).chmod(0o777)
        while True:
            client, _ = server.accept()
            backend = socket.socket(socket.AF_UNIX)
            backend.connect(target)
            for source, sink, seconds in (
                (client, backend, int(microseconds) / 1e6),
                (backend, client, 0.0),
            ):
                threading.Thread(target=_pump, args=(source, sink, seconds), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
