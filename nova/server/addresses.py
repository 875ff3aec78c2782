"""HOST:PORT as people write it."""

from __future__ import annotations

import ipaddress
import re


def split_address(address: str) -> tuple[str, int]:
    """("127.0.0.1", 7420) from "127.0.0.1:7420"; IPv6 hosts stand in brackets. Raises ValueError with the mend."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", address)
    if match is None:
        raise ValueError('is not HOST:PORT; write it like "127.0.0.1:7420" or "[::1]:7420"')
    port = int(match[3])
    if port > 65535:
        raise ValueError(f"has the port {port}; ports end at 65535")
    return match[1] or match[2], port


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach HOST:PORT."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may resolve to anything


__all__ = ["is_loopback", "split_address"]
