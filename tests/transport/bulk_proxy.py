"""A TCP proxy in this process, between the ends of a transfer: it breaks and slows connections when told to."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Forwards to `target`. Connections are numbered as they come.

    slow  {number: bytes that it lets through toward the target in all; then it stands still}
    """

    def __init__(self, target, *, slow=None):
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.slow = dict(slow or {})
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.pairs = []
        self.forwarded = {}
        self.changed = threading.Condition()
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self.changed:
                number = len(self.pairs)
                self.pairs.append((near, far))
                self.forwarded[number] = 0
            for source, sink, counted in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(number, source, sink, counted), daemon=True).start()

    def _pump(self, number, source, sink, counted):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    with self.changed:
                        limit = self.slow.get(number)
                        self.changed.wait_for(
                            lambda: limit is None or self.closed or self.forwarded[number] + len(data) <= limit  # noqa: B023
                        )
                        self.forwarded[number] += len(data)
                        self.changed.notify_all()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def wait_forwarded(self, number, count, seconds=10):
        """Until connection `number` exists and let through `count` bytes."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.forwarded.get(number, -1) >= count, seconds)

    def kill(self, number):
        for end in self.pairs[number]:
            # At once and unkindly, as a machine that loses its power.
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closed = True
        with self.changed:
            self.changed.notify_all()
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        for number in range(len(self.pairs)):
            self.kill(number)
            for end in self.pairs[number]:
                end.close()
