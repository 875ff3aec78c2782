"""The disk, kernel and first file system of the guest, made of Debian packages and kept in a cache.

No package is installed: apt resolves the packages against an empty system, each is unpacked into one tree, and the tree
becomes an ext4 image. So neither root nor a chroot is needed, and nothing of the host but its apt sources goes in. The
guest has the release of the host, hence extension modules that were built here load there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

PACKAGES = (
    # a system
    "base-files base-passwd bash coreutils dash findutils grep sed tar gzip",
    "util-linux mount procps kmod busybox-static",
    # networks
    "iproute2 iputils-ping ethtool wireguard-tools nftables",
    # RDMA
    "rdma-core ibverbs-providers ibverbs-utils rdmacm-utils perftest",
    # what runs the tests
    "python3 python3-pyverbs ca-certificates openssl",
)
KERNELS = {"x86_64": "linux-image-amd64"}
FIRST_MODULES = ("virtio_pci", "virtio_blk", "ext4", "9p", "9pnet_virtio")
"""What the kernel needs to reach its disk and the shared folders; Debian builds none of it in."""

UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "usr/share/perl", "boot")
UNWANTED_DRIVERS = (
    "gpu",
    "media",
    "sound",
    "isdn",
    "iio",
    "scsi",
    "usb",
    "staging",
    "hwmon",
    "input",
    "mmc",
    "platform",
)
SPARE_BYTES = 3 << 30
"""Room for what tests write; the image is sparse, so it costs nothing."""
OLD_SECONDS = 30 * 86400

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "tar": "tar",
}


class LackError(Exception):
    """The lab cannot be had here; the text says what is missing and how to get it."""


def cache_root() -> Path:
    """Where images lie: $NOVA_LAB_CACHE, else novacron-lab in the user's cache folder."""
    if named := os.environ.get("NOVA_LAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "novacron-lab"


def require_tools() -> None:
    """Find every program that the lab needs, or install it where that can be done without asking. Raises LackError."""
    if sys.platform != "linux" or os.uname().machine not in KERNELS:
        raise LackError(
            f"the guest is made for Linux on {' or '.join(KERNELS)}, not {sys.platform} on {os.uname().machine}"
        )
    missing = sorted({package for tool, package in TOOLS.items() if find_tool(tool) is None})
    if not missing:
        return
    done = subprocess.run([REPOSITORY / ".ci/system", *missing], stdin=subprocess.DEVNULL, check=False)
    if done.returncode or any(find_tool(tool) is None for tool in TOOLS):
        raise LackError(f"missing packages: {' '.join(missing)}; install them, then try again")


def find_tool(name: str) -> str | None:
    """mke2fs and its like lie where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def key() -> str:
    """Names the image: another release, list of packages or recipe is another image."""
    release = Path("/etc/os-release").read_bytes()
    return hashlib.sha256(
        b"\0".join([release, HERE.joinpath("first-init").read_bytes(), Path(__file__).read_bytes()])
    ).hexdigest()[:16]


def image() -> Path:
    """The folder with `disk`, `kernel` and `initramfs`, made if need be. Raises LackError."""
    root = cache_root()
    folder = root / key()
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        if not (folder / "complete").exists():
            _forget_old(root)
            began = time.monotonic()
            _say(f"making the image of the guest in {folder} (a few minutes, once)")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _make(folder)
            (folder / "complete").touch()
            _say(f"the image is made, {time.monotonic() - began:.0f} s")
        os.utime(folder / "complete")
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_old(root: Path) -> None:
    for folder in root.iterdir():
        done = folder / "complete"
        if folder.is_dir() and (not done.exists() or done.stat().st_mtime < time.time() - OLD_SECONDS):
            shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path) -> None:
    work = folder / "work"
    root = work / "root"
    root.mkdir(parents=True)
    _unpack(_download(work), root)
    _configure(root)
    (modules,) = (root / "usr/lib/modules").iterdir()
    shutil.copy(root / "boot" / f"vmlinuz-{modules.name}", folder / "kernel")
    (folder / "python").write_text(os.readlink(root / "usr/bin/python3"))
    _trim(root, modules)
    _depmod(root, modules.name)
    (folder / "initramfs").write_bytes(_initramfs(root, modules))
    _disk(root, folder / "disk")
    shutil.rmtree(work)


def _download(work: Path) -> list[Path]:
    """The packages and all that they depend on, as files."""
    state, cache = work / "state", work / "cache"
    for sub in (state / "lists/partial", cache / "archives/partial"):
        sub.mkdir(parents=True)
    (state / "status").touch()
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Acquire::Retries": 3,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
        "APT::Get::AllowUnauthenticated": "false",
        "APT::Install-Recommends": "false",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    log = work / "apt.log"
    wanted = [*" ".join(PACKAGES).split(), KERNELS[os.uname().machine]]
    for what in (["update"], ["install", "--download-only", "-y", *wanted]):
        _say("apt-get " + " ".join(what[:2]))
        with open(log, "ab") as out:
            done = subprocess.run(
                [*apt, *what], stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
            )  # fmt: skip
        if done.returncode:
            said = log.read_text(errors="replace").strip().splitlines()[-6:]
            raise LackError(f"apt-get {what[0]} failed ({done.returncode}): " + " | ".join(said))
    return sorted((cache / "archives").glob("*.deb"))


def _unpack(packages: list[Path], root: Path) -> None:
    _say(f"unpacking {len(packages)} packages")
    # One /usr, as every Debian has it since 12; the packages still name both places.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    skip = [f"--exclude=./{path}/*" for path in UNWANTED if path != "boot"]
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
            subprocess.run(
                ["tar", "-x", "--keep-directory-symlink", "--no-same-owner", *skip, "-C", root],
                stdin=reader.stdout,
                check=True,
            )
        if reader.returncode:
            raise LackError(f"{package.name} cannot be unpacked: dpkg-deb ended with {reader.returncode}")


def _configure(root: Path) -> None:
    """What the packages' own scripts would have done, as far as the tests need it."""
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", root / "etc" / name)
    (root / "etc/hostname").write_text("lab\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost lab\n::1 localhost\n")
    (root / "etc/fstab").touch()
    for name in ("proc", "sys", "dev", "run", "tmp", "repository", "out", "root", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    (root / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
    (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(b"".join(path.read_bytes() for path in certificates))


def _trim(root: Path, modules: Path) -> None:
    for path in UNWANTED:
        shutil.rmtree(root / path, ignore_errors=True)
    for driver in UNWANTED_DRIVERS:
        shutil.rmtree(modules / "kernel/drivers" / driver, ignore_errors=True)
    shutil.rmtree(modules / "kernel/sound", ignore_errors=True)


def _depmod(root: Path, version: str) -> None:
    """By the tree's own program: the host may have none, and of this release both are."""
    libraries = next((root / "usr/lib").glob("*-linux-gnu"))
    loader = next((root / "usr/lib64").glob("ld-linux*"))
    subprocess.run(
        [loader, "--argv0", "depmod", "--library-path", libraries, root / "usr/bin/kmod", "-b", root, version],
        check=True,
    )


def _initramfs(root: Path, modules: Path) -> bytes:
    """A cpio archive: busybox, the modules that reach the disk, and the script that does it."""
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[_module_name(path)] = (path, rest.split())
    order: list[str] = []

    def need(path: str) -> None:
        for other in depends[_module_name(path)][1]:
            need(other)
        if path not in order:
            order.append(path)

    builtin = {_module_name(path) for path in (modules / "modules.builtin").read_text().split()}
    for name in FIRST_MODULES:
        if name not in builtin:
            need(depends[name][0])
    # ext4 asks for its checksum by name, which modules.dep does not know of.
    for name in ("crc32c_generic",):
        if name in depends:
            need(depends[name][0])
    files = {"init": (HERE / "first-init").read_bytes(), "bin/busybox": (root / "bin/busybox").read_bytes()}
    for number, path in enumerate(order):
        data = (modules / path).read_bytes()
        files[f"modules/{number:02}-{_module_name(path)}.ko"] = lzma.decompress(data) if path.endswith(".xz") else data
    return _cpio(files, folders=("bin", "modules", "proc", "sys", "dev", "root"))


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def _cpio(files: dict[str, bytes], folders: tuple[str, ...]) -> bytes:
    """The archive format that the kernel unpacks ("newc" in its buffer-format document)."""
    out = bytearray()

    def add(number: int, name: str, mode: int, data: bytes) -> None:
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        out.extend(bytes(-len(out) % 4))

    entries = [(name, 0o40755, b"") for name in folders] + [(name, 0o100755, data) for name, data in files.items()]
    for number, (name, mode, data) in enumerate(entries, 1):
        add(number, name, mode, data)
    add(0, "TRAILER!!!", 0, b"")
    return bytes(out)


def _disk(root: Path, disk: Path) -> None:
    _say("writing the disk")
    used = sum(path.lstat().st_size + 4096 for path in root.rglob("*"))
    mke2fs = find_tool("mke2fs")
    assert mke2fs is not None
    subprocess.run(
        [mke2fs, "-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0", "-d", root, disk,
         f"{(used * 5 // 4 + SPARE_BYTES) >> 10}K"],
        check=True,
    )  # fmt: skip


def _say(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)
