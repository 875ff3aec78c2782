"""What RDMA does on this machine's device: our data paths beside perftest (ib_send_bw, ib_write_bw, ib_send_lat).

usage: python hw/measure_rdma.py [--device NAME] [--peer NAME] [--seconds S] [--json]

Both ends are in this process, on two devices or on one whose port loops back, so figures of two machines are better.
Every figure carries the kind of device: what an emulated device in an emulated machine does says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nova.errors import UnavailableError, UsageError
from nova.transport.rdma.devices import Device
from nova.transport.rdma.endpoint import Endpoint, choose_device
from nova.transport.rdma.transport import make_endpoint

PIECE_BYTES = 256 * 1024
QUEUE_BYTES_MAX = 4 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="")
    parser.add_argument("--peer", default="", help="the device of the other end; the same one by default")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        device, _, gid = choose_device(given.device)
        peer, _, peer_gid = choose_device(given.peer or device.name)
    except (UnavailableError, UsageError) as error:
        print(f"measure_rdma: {error}", file=sys.stderr)
        return 1
    rows = []
    for path in ("c", "pyverbs"):
        try:
            make = make_endpoint(path)
        except UnavailableError as error:
            rows.append({"what": path, "skipped": str(error)})
            continue
        ends = make(*choose_device(device.name)), make(*choose_device(peer.name))
        ends[0].connect(ends[1].offer)
        ends[1].connect(ends[0].offer)
        rows.append({"what": f"{path}: one stream, Gbit/s", "value": bandwidth(*ends, given.seconds)})
        rows.append({"what": f"{path}: 64 B there and back, us", "value": round_trip(*ends, given.seconds)})
        for end in ends:
            end.close()
    for program, unit in (("ib_send_bw", "Gbit/s"), ("ib_write_bw", "Gbit/s"), ("ib_send_lat", "us one way")):
        rows.append({"what": f"{program}, {unit}", **perftest(program, device, gid.index, peer, peer_gid.index)})
    for row in rows:
        row["device"] = f"{device.name} to {peer.name} ({device.kind})"
    if given.json:
        print(json.dumps({"rows": rows}))
    else:
        for row in rows:
            value = f"{row['value']:.3f}" if "value" in row else f"skipped: {row['skipped']}"
            print(f"{row['device']:32} {row['what']:36} {value}")
    return 0


def bandwidth(one: Endpoint, two: Endpoint, seconds: float) -> float:
    """Bytes that arrived, in Gbit/s."""
    piece, got, began = bytes(PIECE_BYTES), 0, time.perf_counter()
    sent = 0
    while (took := time.perf_counter() - began) < seconds or got < sent:
        if took < seconds and one.queued_bytes < QUEUE_BYTES_MAX:
            one.write(piece)
            sent += PIECE_BYTES
        got += sum(map(len, two.poll()))
        one.poll()
    return got * 8 / (time.perf_counter() - began) / 1e9


def round_trip(one: Endpoint, two: Endpoint, seconds: float) -> float:
    """Median of messages of 64 bytes that are sent back, in microseconds; both ends are polled."""
    word, times, end = bytes(64), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        one.write(word)
        while not two.poll():
            one.poll()
        two.write(word)
        while not one.poll():
            two.poll()
        times.append(time.perf_counter_ns() - began)
    return sorted(times)[len(times) // 2] / 1000


def perftest(program: str, device: Device, gid: int, peer: Device, peer_gid: int) -> dict[str, object]:
    """The figure that perftest gives for its default sizes, half a round trip for ib_send_lat."""
    if shutil.which(program) is None:
        return {"skipped": f"no {program}: apt install perftest"}
    common = [program, "-F", "-n", "200", *([] if program.endswith("lat") else ["--report_gbits"])]
    server = subprocess.Popen(
        [*common, "-d", peer.name, "-x", str(peer_gid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):  # until the server listens
            done = subprocess.run(
                [*common, "-d", device.name, "-x", str(gid), "127.0.0.1"],
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                break
            time.sleep(0.1)
        rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s", line)]
        if done.returncode or not rows:
            return {"skipped": f"{program} failed: {(done.stderr.strip() or done.stdout.strip())[-200:]}"}
        # size, iterations, then peak and average bandwidth; or least, most and typical latency
        return {"value": float(rows[0][4 if program.endswith("lat") else 3])}
    except subprocess.TimeoutExpired:
        return {"skipped": f"{program} did not end in time"}
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
