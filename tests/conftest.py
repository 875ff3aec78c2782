"""What all tests share: how hard Hypothesis tries, where public data lies, and a header that says what is tested."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# HYPOTHESIS_PROFILE=fuzz is for the fuzz run in CI. No deadlines: the machine is shared, and sanitizers are slow.
settings.register_profile("nova", deadline=None, print_blob=True)
settings.register_profile(
    "fuzz", deadline=None, print_blob=True, max_examples=2000, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nova"))


def pytest_configure() -> None:
    """Whoever asks for the sanitizers shall not be given the normal build instead."""
    if os.environ.get("NOVA_SANITIZE") == "1":
        from nova._native import keyspace

        if b"__asan_init" not in Path(keyspace.__file__).read_bytes():
            raise pytest.UsageError(f"NOVA_SANITIZE=1, but {keyspace.__file__} is built without sanitizers")


def pytest_report_header() -> list[str]:
    import nova

    data = test_data_root()
    return [
        f"nova {nova.__version__} from {os.path.relpath(Path(nova.__file__).parent, ROOT)}, "
        f"sanitizers {'on' if os.environ.get('NOVA_SANITIZE') == '1' else 'off'}",
        f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}",
        f"public data: {'found' if data.is_dir() else 'none; set NOVA_TEST_DATA to run the tests that read it'}",
    ]


def test_data_root() -> Path:
    """Where public data lies; it need not exist."""
    return Path(os.environ.get("NOVA_TEST_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; skips where there is none."""
    root = test_data_root()
    if not root.is_dir():
        pytest.skip("no public data here; NOVA_TEST_DATA names the folder that holds it")
    return root
