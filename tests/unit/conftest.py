from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import kdumphpd.image
from kdumphpd.service import Service
from tests.unit.fake_kdump import FakeKdump
from tests.unit.host_fixture import FakeHost

# A slow machine is no failure; speed is measured by the benchmark.
settings.register_profile("kdumphpd", deadline=None)
settings.load_profile("kdumphpd")

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "purgatory"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path, crashkernel=64 << 20)


@pytest.fixture
def service(host: FakeHost) -> Service:
    """Started and at rest; its records so far are forgotten."""
    service = host.service()
    service.start()
    host.settle(service)
    host.records.clear()
    host.kernel.calls.clear()
    return service


@pytest.fixture
def kdump(host: FakeHost) -> FakeKdump:
    return FakeKdump(host)


@pytest.fixture(scope="session")
def purgatory_build() -> Path:
    """Directory with a purgatory.elf and purgatory.bin built from this tree."""
    # A virtual environment's tools count even when it is not activated.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    environment = {**os.environ, "PATH": path}
    if shutil.which("meson", path=path) is None:
        pytest.fail("meson is missing: install the test extra's build tools (meson, ninja)")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD.parent / "purgatory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        setup = ["meson", "setup", str(BUILD), str(REPOSITORY)]
        compiling = ["meson", "compile", "-C", str(BUILD)]
        # The directory may be another meson's, or lie elsewhere by now: begin anew then.
        if _problem(compiling, environment) is not None:
            if (BUILD / "build.ninja").exists():
                setup.append("--wipe")
            for command in (setup, compiling):
                problem = _problem(command, environment)
                if problem is not None:
                    pytest.fail(problem)
    return BUILD / "kdumphpd" / "image" / "purgatory"


@pytest.fixture(scope="session", autouse=True)
def purgatory_binary(purgatory_build: Path) -> bytes:
    """The purgatory of this tree, put where the package looks for it.

    Only when the package is imported from the source tree; an installed one
    has its own, and it is that one which is tested.
    """
    package = Path(kdumphpd.image.__file__).parent
    place = package / "purgatory.bin"
    if package == REPOSITORY / "kdumphpd" / "image":
        built = (purgatory_build / "purgatory.bin").read_bytes()
        if not place.exists() or place.read_bytes() != built:
            fresh = place.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(built)
            fresh.replace(place)
    return place.read_bytes()


def _problem(command: list[str], environment: dict[str, str]) -> str | None:
    """Run a command; what it said if it failed."""
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if result.returncode == 0:
        return None
    return f"{' '.join(command)}:\n{result.stdout}{result.stderr}"
