"""The oracles and packers of the rig, against models and tools; no machine is booted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.rig import BOOKWORM, MIB, Overlay, expected_ram, initramfs

pytestmark = pytest.mark.vm  # they need the packages that the machines need

_NAMES = st.sampled_from(
    ["System RAM", "System RAM (kmem)", "Reserved", "  Crash kernel", "  GART", "  Kernel code"]
)
_RESOURCES = st.lists(st.tuples(_NAMES, st.integers(0, 60), st.integers(1, 20)), max_size=8)
_PIECE = MIB // 4


@given(_RESOURCES)
def test_expected_ram_agrees_with_a_set_of_addresses(
    resources: list[tuple[str, int, int]],
) -> None:
    lines: list[str] = []
    ram: set[int] = set()
    holes = set(range(4))
    for name, first, count in resources:
        indent = name[: len(name) - len(name.lstrip())]
        start, end = first * _PIECE, (first + count) * _PIECE - 1
        lines.append(f"{indent}{start:08x}-{end:08x} : {name.strip()}")
        pieces = range(first, first + count)
        if name.startswith("System RAM"):
            ram.update(pieces)
        elif name.strip() in ("Crash kernel", "GART"):
            holes.update(pieces)
    if not ram:
        with pytest.raises(ValueError, match="no RAM"):
            expected_ram("\n".join(lines))
        return

    found = expected_ram("\n".join(lines))

    covered = {piece for start, end in found for piece in range(start // _PIECE, end // _PIECE + 1)}
    assert covered == ram - holes
    assert all((start % _PIECE, end % _PIECE) == (0, _PIECE - 1) for start, end in found)
    assert all(one[1] + 1 < two[0] for one, two in zip(found, found[1:]))


def test_expected_ram_without_privileges() -> None:
    with pytest.raises(ValueError, match="CAP_SYS_ADMIN"):
        expected_ram("00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n")


def test_packed_tree_is_what_cpio_reads(tmp_path: Path) -> None:
    overlay = Overlay(tmp_path / "tree")
    overlay.write("/usr/bin/tool", "#!/bin/sh\n", 0o755)
    overlay.enable("one.service")
    initramfs.pack(overlay.tree, tmp_path / "archive")

    with (tmp_path / "archive").open("rb") as archive:
        listed = subprocess.run(
            ["cpio", "-tvn", "--quiet"], stdin=archive, capture_output=True, text=True, check=True
        ).stdout

    rows = {line.split()[8]: line.split() for line in listed.splitlines()}
    assert rows["usr/bin/tool"][:4] == ["-rwxr-xr-x", "1", "0", "0"]
    link = rows["etc/systemd/system/multi-user.target.wants/one.service"]
    assert link[-2:] == ["->", "/usr/lib/systemd/system/one.service"]


def test_wheel_is_installed_for_the_guest(tmp_path: Path) -> None:
    wheel = tmp_path / "tool-1-py3-none-any.whl"
    info = "tool-1.dist-info"
    files = {
        "tool.py": "def main(): ...\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tool\nVersion: 1\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntool = tool:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    overlay = Overlay(tmp_path / "tree")

    overlay.install_wheel(wheel, BOOKWORM)

    script = overlay.tree / "usr/bin/tool"
    assert script.read_text().startswith("#!/usr/bin/python3\n")
    assert script.stat().st_mode & 0o777 == 0o755
    assert (overlay.tree / "usr/local/lib/python3.11/dist-packages/tool.py").exists()


@pytest.mark.timeout(60)
def test_machine_dies_with_its_parent(tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to clean up; the empty kernel never gets far."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    machine = int(parent.stdout.readline())
    assert Path(f"/proc/{machine}/comm").read_text().startswith("qemu-system")

    parent.send_signal(signal.SIGKILL)
    parent.wait(10)

    deadline = time.monotonic() + 30
    while _is_alive(machine):
        assert time.monotonic() < deadline, "QEMU outlives its parent"
        time.sleep(0.05)


_PARENT = """
import subprocess, sys
from pathlib import Path
from tests.vm.rig.options import MachineOptions, Sockets, qemu_command

here = Path(sys.argv[1])
for name in ("kernel", "initrd", "disk"):
    (here / name).write_bytes(bytes(1 << 20))
command = qemu_command(
    MachineOptions(), "tcg", here / "kernel", here / "initrd", here / "disk",
    here / "console.log", here, Sockets(here),
)
command[command.index("-kernel"):command.index("-drive")] = []
machine = subprocess.Popen([*command, "-S"])
while not (here / "gdb").exists():
    assert machine.poll() is None
print(machine.pid, flush=True)
machine.wait()
"""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that init has not reaped yet is dead all the same.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text()
