"""The hardware tests on the best that can be had: a real RDMA NIC, rxe on this kernel, the guest lab.

usage: python hw/run.py [PYTEST ARGUMENT ...]     what `make test-hw` does

Where there is none of the three, says why and ends well, unless NOVA_REQUIRE_RDMA=rxe|hw says that there must be one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from nova.transport.rdma.devices import devices, usable  # noqa: E402

LAB_LACK = 77
LAB_SECONDS = float(os.environ.get("NOVA_LAB_SECONDS", "1500"))


def main(arguments: list[str]) -> int:
    required = os.environ.get("NOVA_REQUIRE_RDMA", "")
    if required not in ("", "rxe", "hw"):
        print(f"test-hw: NOVA_REQUIRE_RDMA is {required!r}; it is rxe, hw or not set", file=sys.stderr)
        return 2
    real = [device.name for device in devices() if device.kind == "hw" and not usable(device)]
    if real and required != "rxe":
        return here(arguments, f"a real NIC: {', '.join(real)}", {"NOVA_REQUIRE_RDMA": "hw"})
    reasons = ["no RDMA NIC with an active port"]
    if required == "hw":
        return lack(reasons, required)
    done = subprocess.run([HERE / "softroce.sh"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        try:
            return here(arguments, "soft RoCE on this kernel", {"NOVA_REQUIRE_RDMA": "rxe"})
        finally:
            subprocess.run([HERE / "softroce.sh", "remove"], check=False)
    reasons.append(f"no soft RoCE on this kernel ({done.stderr.strip().removeprefix('softroce: ')})")
    print(f"test-hw: {'; '.join(reasons)}: in the guest lab", flush=True)
    command = [sys.executable, str(HERE / "lab"), "pytest", "-t", str(LAB_SECONDS), "-e", "NOVA_REQUIRE_RDMA=rxe"]
    lab = subprocess.run(
        [*command, "--require-hw", *(arguments or ["hw"])], stdout=sys.stdout, stderr=subprocess.PIPE, text=True
    )
    sys.stderr.write(lab.stderr)
    if lab.returncode != LAB_LACK:
        return lab.returncode
    reasons.append("no guest lab (" + lab.stderr.strip().rpartition("lab: not here: ")[2] + ")")
    return lack(reasons, required)


def here(arguments: list[str], what: str, environment: dict[str, str]) -> int:
    print(f"test-hw: on {what}", flush=True)
    command = [sys.executable, "-m", "pytest", *(arguments or ["hw"])]
    return subprocess.run(command, cwd=HERE.parent, env={**os.environ, **environment}, check=False).returncode


def lack(reasons: list[str], required: str) -> int:
    if required:
        print(f"test-hw: NOVA_REQUIRE_RDMA={required}, and there is none: {'; '.join(reasons)}", file=sys.stderr)
        return 1
    # CI lists lines that begin like this among what was left out.
    print(f"skipped: hardware tests: {'; '.join(reasons)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
