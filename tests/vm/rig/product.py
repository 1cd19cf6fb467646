"""The product as a package would install it, laid over a guest."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from .errors import RigError
from .guests import Guest
from .options import CAPTURE_COMMAND_LINE
from .overlay import Overlay
from .progress import step

CONFIG = f"""\
[image]
source = "explicit"
kernel = "/boot/vmlinuz"
initrd = "/boot/capture.img"
command_line = "{CAPTURE_COMMAND_LINE}"
"""
"""Configuration that loads the image's own kernel and initramfs as crash kernel."""


def build_wheel(source: Path, directory: Path) -> Path:
    """Build a wheel of the tree ``source`` into ``directory``, which must have no other.

    Where this Python has the build backend nothing is fetched.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--wheel-dir", str(directory), str(source)]
    if importlib.util.find_spec("mesonpy") is not None:
        command.append("--no-build-isolation")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with step("wheel"):
        _make(command, PATH=tools)
    (wheel,) = directory.glob("*.whl")
    return wheel


def build_rpm(source: Path, directory: Path, release: str) -> Path:
    """The package of the tree ``source`` as it is now, made as ``make rpm`` does: seconds."""
    command = [str(source / "packaging/rpm/build-rpm"), str(directory)]
    with step("rpm"):
        _make(command, PYTHON=sys.executable, RELEASE=release)
    (package,) = directory.glob("kdumphpd-[0-9]*.rpm")
    return package


def _make(command: list[str], **environment: str) -> None:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")


def add_product(
    overlay: Overlay, guest: Guest, wheel: Path, units: Path, config: str = CONFIG
) -> None:
    """Install the product and its configuration in ``overlay``; enable no unit.

    Args:
        overlay: gets the files.
        guest: where the overlay is going to lie.
        wheel: the built product.
        units: the tree's ``systemd`` directory with units and message catalog.
        config: text of /etc/kdumphpd/kdumphpd.toml.
    """
    overlay.install_wheel(wheel, guest)
    overlay.write("/etc/kdumphpd/kdumphpd.toml", config)
    for unit in sorted(units.glob("*.service")):
        overlay.copy(unit, f"/usr/lib/systemd/system/{unit.name}")
    for catalog in sorted(units.glob("*.catalog")):
        overlay.copy(catalog, f"/usr/lib/systemd/catalog/{catalog.name}")


def add_rpm(overlay: Overlay, guest: Guest, rpm: Path) -> None:
    """Lay the files of ``rpm`` over a guest as rpm would place them; enable no unit.

    Raises:
        RigError: it is for another Python than the guest's.
    """
    if needs_python(rpm) != guest.python:
        raise RigError(f"{rpm.name} is for Python {needs_python(rpm)}, {guest.name} has another")
    payload = subprocess.run(["rpm2cpio", rpm], capture_output=True, timeout=60, check=True).stdout
    extract = ["cpio", "--quiet", "-idmu", "--no-absolute-filenames"]
    subprocess.run(extract, input=payload, cwd=overlay.tree, timeout=60, check=True)


def needs_python(rpm: Path) -> str:
    """The Python version that the package asks for: its bundled libraries are built for it."""
    command = ["rpm", "-q", "--requires", "-p", str(rpm)]
    requires = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    (version,) = (
        line.split()[-1]
        for line in requires.stdout.splitlines()
        if line.startswith("python(abi) = ")
    )
    return version
