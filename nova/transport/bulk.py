"""Large objects over many TCP streams at once: striped, resumable, verified.

    with BulkListener("10.0.0.2:7500", key=key) as listener:          # where the object goes
        bulk_recv(listener, "disk.img")
    bulk_send("disk.img", "10.0.0.2:7500", key=key)                   # where it is

Chunks of one size are taken by whichever stream has room for the next, so a slow stream holds no other up, and are put
straight to their place by their offset. What a broken connection had not got acknowledged goes over the others. What
a killed receiver had on disk is in a journal, and the same call on both sides goes on from there: no chunk counts that
does not still have its sum. At the end both sides compare one digest of the whole object. The design is that of GridFTP
(Allcock et al. 2005), parallel streams with restart markers, with work pulled and not dealt.

Where an object is sent from and goes to: a path; (descriptor, offset, size); a buffer, such as a NumPy array. Nothing
is copied on the way but by the kernel. A source must not change while it is sent: if it does, the digests differ, and
that is an error.

A cluster key authenticates every chunk. The bytes are not encrypted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Unpack

from nova.transport.bulk_place import PlaceLike, SourceLike
from nova.transport.bulk_receiver import BulkListener, BulkReceiver, ReceiveOptions, bulk_recv
from nova.transport.bulk_sender import BulkSender, SendOptions, bulk_send
from nova.transport.bulk_wire import BulkReceipt, Progress

__all__ = [
    "BulkListener",
    "BulkReceipt",
    "BulkReceiver",
    "BulkSender",
    "PlaceLike",
    "Progress",
    "ReceiveOptions",
    "SendOptions",
    "SourceLike",
    "bulk_recv",
    "bulk_recv_async",
    "bulk_send",
    "bulk_send_async",
]


async def bulk_send_async(
    source: SourceLike,
    address: str,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[SendOptions],
) -> BulkReceipt:
    """`bulk_send` in a thread, in which `progress` is called. Cancelling the task ends the transfer."""
    return await _run(BulkSender(source, address, **options), progress)


async def bulk_recv_async(
    listener: BulkListener,
    into: PlaceLike = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[ReceiveOptions],
) -> BulkReceipt:
    """`bulk_recv` of a `BulkListener` in a thread. Cancelling the task ends the transfer."""
    return await _run(listener.receive(into, **options), progress)


async def _run(one: BulkSender | BulkReceiver, progress: Callable[[Progress], None] | None) -> BulkReceipt:
    def whole() -> BulkReceipt:
        for now in one:
            if progress is not None:
                progress(now)
        assert one.receipt is not None
        return one.receipt

    thread = asyncio.get_running_loop().run_in_executor(None, whole)
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        one.cancel()
        await asyncio.wait([thread])  # sockets and files are let go of before the task is
        thread.exception()
        raise
