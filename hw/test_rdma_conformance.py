"""The transport's own suite over RDMA: each data path, and one talking to the other."""

from __future__ import annotations

import asyncio
import inspect

import pytest
import test_transport
import uvloop
from conftest import lack
from test_transport import KEY, Engine, identity

from nova.errors import UnavailableError
from nova.transport.rdma.devices import devices, usable
from nova.transport.rdma.transport import RdmaTransport, make_endpoint

WAYS = {
    "c": ("c", "c"),
    "c to pyverbs": ("c", "pyverbs"),
    "c on uvloop": ("c", "c"),
}


class RdmaEngine(Engine):
    """Node a on one device and b on the other, if there are two."""

    def __init__(self, kind, names):
        super().__init__(kind)
        self.names = names

    def run(self, test):
        async def whole():
            self.made = []
            try:
                async with asyncio.timeout(120):
                    await test(self)
            finally:
                await asyncio.gather(*(transport.close() for transport in self.made))

        (uvloop.run if "uvloop" in self.kind else asyncio.run)(whole())

    def make(self, node, *, key=KEY, limits=None, **more):
        one, two = WAYS[self.kind]
        second = node == "b"
        made = RdmaTransport(
            identity(node, **more),
            key=key,
            limits=limits,
            device=self.names[-1 if second else 0],
            data_path=two if second else one,
        )
        self.made.append(made)
        return made


@pytest.fixture(params=WAYS)
def engine(request, rdma_device):
    for path in set(WAYS[request.param]):
        try:
            make_endpoint(path)
        except UnavailableError as error:
            lack(request, str(error))
    names = [device.name for device in devices() if device.kind == rdma_device.kind and not usable(device)]
    return RdmaEngine(request.param, [rdma_device.name, *[name for name in names if name != rdma_device.name][:1]])


# Whatever the suite says of an engine; what it says of TCP and of the simulator is theirs.
for _name, _test in list(vars(test_transport).items()):
    if _name.startswith("test_") and "engine" in inspect.signature(_test).parameters:
        globals()[_name] = _test
