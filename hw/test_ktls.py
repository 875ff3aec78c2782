"""Kernel TLS: OpenSSL hands the keys of a blocking socket to the kernel, and what arrives is what was sent."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from conftest import lack, require_modules

from nova.transport.tls import Tls, TlsFiles
from nova.transport.tls_socket import kernel_tls, kernel_tls_available, secure

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from nova.transport.authority import Authority

    made = Authority.create(tmp_path_factory.mktemp("certs"), "c")
    for node in "ab":
        made.issue(node, "r")
    return made.folder


@pytest.fixture
def ktls(request) -> None:
    require_modules(request, "tls")
    if why := kernel_tls_available():
        lack(request, why)


def connected(folder: Path, *, kernel: bool) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a connection over loopback: of a, which called, and of b."""
    a, b = (Tls(TlsFiles.in_folder(folder, node), cluster="c", kernel=kernel) for node in "ab")
    found = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), timeout=60)
        two, _ = server.accept()
        two.settimeout(60)
    thread = threading.Thread(target=lambda: found.append(secure(two, b, server_side=True)[0]))
    thread.start()
    end, _ = secure(one, a, server_side=False)
    thread.join()
    return end, found[0]


def carried(sender: ssl.SSLSocket, receiver: ssl.SSLSocket) -> bool:
    """Whether what arrives is what was sent."""
    data = bytes(range(251)) * (MIB // 251)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    got = bytearray()
    while len(got) < len(data):
        got += receiver.recv(MIB)
    thread.join()
    return got == data


def encrypted_by_the_kernel() -> int:
    """How many sockets the kernel has encrypted for, ever."""
    lines = (line.split() for line in Path("/proc/net/tls_stat").read_text().splitlines())
    return sum(int(count) for name, count in lines if name in ("TlsTxSw", "TlsTxDevice"))


def test_the_kernel_encrypts_both_ways(ktls, folder, request):
    before = encrypted_by_the_kernel()
    one, two = connected(folder, kernel=True)
    with one, two:
        if not kernel_tls(one)[0]:
            lack(request, f"{ssl.OPENSSL_VERSION} of this Python is built without kTLS")
        assert kernel_tls(two)[0]
        assert encrypted_by_the_kernel() == before + 2
        assert carried(one, two)
        assert carried(two, one)


def test_it_is_left_alone_where_it_is_not_wanted(ktls, folder):
    one, two = connected(folder, kernel=False)
    with one, two:
        assert kernel_tls(one) == kernel_tls(two) == (False, False)
        assert carried(one, two)


def test_detection_says_what_openssl_can_do_with_it(ktls):
    from nova.hardware import detect

    found = {finding.name: finding for finding in detect()}
    assert found["kernel TLS"].state == "present"
    assert "kTLS" in found["OpenSSL"].detail
