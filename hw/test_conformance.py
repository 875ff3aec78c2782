"""The suite that every engine passes (tests/conformance/test_transport.py), on the kernel and the devices of here."""

from __future__ import annotations

import test_transport
from test_transport import *  # noqa: F403

# Which engines there are is said once, in the suite: TCP, and whatever else runs without a device of its own.
assert test_transport.engine
