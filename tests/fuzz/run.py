"""Coverage-guided fuzzing (libFuzzer) of native code that strangers reach, decoders first, under ASan and UBSan.

usage: python tests/fuzz/run.py [--seconds N] [--jobs N] [TARGET ... | c | python]
       python tests/fuzz/run.py --again FILE

Builds into build/fuzz and runs each target, two at a time unless told otherwise, for N seconds (20) from the corpus of
the last run and from seeds made of real objects. Exit status 1 if a decoder crashes, hangs, takes too much memory or
breaks what its target requires of it; the last lines then name the input, and --again runs that input alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS = ROOT / "tests" / "fuzz" / "targets"
BUILD = ROOT / "build" / "fuzz"
CLANG = os.environ.get("NOVA_CLANG", "clang")
SANITIZERS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# target -> the kernels it is linked with; tests/fuzz/targets/<target>.c calls them
IN_C = {
    "sequence": ["sequence.c", "sequence_tree.c", "sequence_join.c", "runs.c", "marks.c", "digest.c"],
    "pack": ["pack.c"],
    "sketch": ["sketch.c"],
    "value": ["crdt.c"],
    "frame": ["frame.c"],
    "channel": ["channel.c", "channel_out.c", "pool.c", "frame.c", "blake3.c"],
    "log": ["log.c"],
    "ottext": ["ottext.c"],
    "text": ["text.c"],
    "bulk": ["bulk.c", "frame.c", "blake3.c"],
}
# functions of tests/fuzz/targets/decoders.py
IN_PYTHON = ["state", "delta", "clock", "pieces", "keyspace", "audit"]

SECONDS_MAX = 10  # for one input; a sanitizer build on a busy machine is a hundred times slower than the real one
RSS_MB_MAX = 1024
BLOCK_MB_MAX = 64  # one allocation: no input is longer than 20 kB
BYTES_MAX = {"keyspace": 20_000}  # a summary has 16 kB of digests
BYTES = 4096


def run(command: list[str | Path], **environment: str) -> None:
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)


def clang_works() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "t.c")
        source.write_text("int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return 0; }\n")
        command = [CLANG, "-fsanitize=fuzzer,address,undefined", source, "-o", source.with_suffix("")]
        try:
            return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
        except OSError:
            return False


def need_clang() -> None:
    """Install it if it is not here; a fuzzer that is left out silently finds nothing."""
    if not clang_works() and (
        subprocess.run([ROOT / ".ci" / "system", "clang", "libclang-rt-dev"], check=False).returncode
        or not clang_works()
    ):
        sys.exit(f"fuzz: {CLANG} builds no libFuzzer program; clang and its runtime (libclang-rt-dev) are needed")


def build(targets: list[str]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    link = [CLANG, "-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", *SANITIZERS, "-fsanitize=fuzzer", "-Icsrc"]
    for target in targets:
        if target in IN_C:
            sources = [ROOT / "csrc" / name for name in IN_C[target]]
            run([*link, TARGETS / f"{target}.c", *sources, "-o", BUILD / target])
    if not any(target in IN_PYTHON for target in targets):
        return
    # The library of the interpreter that runs this; its program looks the native modules up in BUILD/lib.
    variables = sysconfig.get_config_vars()
    place, name = variables["LIBDIR"], f"python{variables['LDVERSION']}"
    libraries = [f"-L{place}", f"-L{variables['LIBPL']}", f"-Wl,-rpath,{place}", f"-l{name}", "-ldl", "-lm", "-lutil"]
    include = f"-I{sysconfig.get_path('include')}"
    run([*link, include, TARGETS / "python.c", *libraries, "-rdynamic", "-o", BUILD / "python"])
    clang = {"NOVA_SANITIZE": "fuzz", "CC": CLANG, "LDSHARED": f"{CLANG} -shared"}
    setup = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", BUILD / "lib"]
    run([*setup, "build_ext", "--build-lib", BUILD / "lib", "--build-temp", BUILD / "temp"], **clang)
    for module in (BUILD / "lib" / "nova" / "_native").glob("*.so"):
        if b"__sanitizer_cov" not in module.read_bytes():
            sys.exit(f"fuzz: {module} is built without counters; remove {BUILD} and try again")


def environment_of(target: str) -> dict[str, str]:
    out = {
        **os.environ,
        "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    if target in IN_PYTHON:
        out |= {
            # The interpreter never frees all it has; its own allocator would hide overruns.
            "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
            "PYTHONPATH": os.pathsep.join(map(str, (BUILD / "lib", TARGETS))),
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NOVA_FUZZ_TARGET": target,
            "NOVA_FUZZ_PYTHON": sys.executable,
        }
    return out


def program(target: str) -> Path:
    return BUILD / ("python" if target in IN_PYTHON else target)


def make_seeds(targets: list[str]) -> None:
    sys.path[:0] = [str(TARGETS), str(ROOT)]
    import decoders  # type: ignore[import-not-found]

    words = "".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in magic)}"\n' for magic in decoders.MAGICS)
    # In one piece: another run of this may be about to read it.
    fresh = BUILD / f"dictionary-{os.getpid()}"
    fresh.write_text(words)
    fresh.replace(BUILD / "dictionary")
    for target in targets:
        folder = BUILD / "seeds" / target
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for i, seed in enumerate(decoders.SEEDS[target]()):
            (folder / f"{i:02}").write_bytes(seed)


def fuzz(target: str, seconds: int) -> tuple[bool, str]:
    """Whether nothing was found, and what to print."""
    corpus, findings = BUILD / "corpus" / target, BUILD / "findings" / target
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    log = BUILD / f"{target}.log"
    command: list[str | Path] = [
        program(target),
        f"-max_total_time={seconds}",
        f"-timeout={SECONDS_MAX}",
        f"-rss_limit_mb={RSS_MB_MAX}",
        f"-malloc_limit_mb={BLOCK_MB_MAX}",
        f"-max_len={BYTES_MAX.get(target, BYTES)}",
        f"-dict={BUILD / 'dictionary'}",
        f"-artifact_prefix={findings}{os.sep}",
        "-use_value_profile=1",
        "-print_final_stats=1",
        corpus,
        BUILD / "seeds" / target,
    ]
    with log.open("wb") as file:
        status = subprocess.run(
            command, cwd=ROOT, env=environment_of(target), stdout=file, stderr=file, check=False
        ).returncode
    text = log.read_text(errors="replace")
    executions = re.search(r"number_of_executed_units: (\d+)", text)
    progress = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    if status == 0 and executions and progress:
        covered, features, inputs = progress[-1]
        return True, (
            f"fuzz: {target:9} {int(executions[1]):>10,} executions in {time.monotonic() - started:.0f} s, "
            f"{covered} edges, {features} features, {inputs} inputs: nothing found"
        )
    found = re.search(r"Test unit written to (\S+)", text)
    tail = "\n".join(text.splitlines()[-60:])
    if not found:
        return False, f"{tail}\nfuzz: {target} failed (status {status}) without an input; see {log}"
    return False, f"{tail}\nfuzz: {target} failed; again with: python tests/fuzz/run.py --again {found[1]}"


def main() -> int:
    every = [*IN_C, *IN_PYTHON]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(every)}; c or python: all of that kind"
    )
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at a time")
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="run one input that failed, in build/fuzz/findings/TARGET"
    )
    asked = parser.parse_args()
    kinds = {"c": list(IN_C), "python": IN_PYTHON}
    asked.targets = [target for name in asked.targets for target in kinds.get(name, [name])]
    if unknown := set(asked.targets) - set(every):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    if asked.again:
        target = asked.again.resolve().parent.name
        if target not in every:
            parser.error(f"{asked.again} is not in a folder that is named after a target")
        need_clang()
        build([target])
        return subprocess.run(
            [program(target), asked.again.resolve()], env=environment_of(target), check=False
        ).returncode
    targets = asked.targets or every
    need_clang()
    build(targets)
    make_seeds(targets)
    sound = True
    with ThreadPoolExecutor(asked.jobs) as pool:
        for fine, words in pool.map(lambda target: fuzz(target, asked.seconds), targets):
            print(words, flush=True)
            sound &= fine
    return not sound


if __name__ == "__main__":
    sys.exit(main())
