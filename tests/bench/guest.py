"""A guest with the daemon running in it, for the parts that need a real kernel."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    MIB,
    Guest,
    Machine,
    MachineOptions,
    Overlay,
    accelerator,
    add_product,
    build_or_reuse,
    build_wheel,
)
from tests.vm.rig.guest_shell import GuestShell

TREE = Path(__file__).parents[2]
UNIT = "kdumphpd.service"
FILE_UNIT = "bench-file.service"
KERNEL = "/boot/vmlinuz"
INITRD = "/boot/bench.img"

# The pause that keeps a host armed 99 % of the time would follow each full load by most
# of a minute; at 10 %, the most that can be configured, it is seconds. How long a load
# takes does not depend on it.
CONFIG = f"""\
[image]
source = "explicit"
kernel = "{KERNEL}"
initrd = "{INITRD}"
command_line = "{CAPTURE_COMMAND_LINE}"

[update]
max_disarmed_percent = 10
"""

# One load by hand on a host without kexec_load(2), as RHEL 10: the file rung.
_FILE_UNIT = """\
[Service]
Type=oneshot
RuntimeDirectory=kdumphpd
SystemCallFilter=~kexec_load
SystemCallErrorNumber=ENOSYS
ExecStart=/usr/bin/kdumphpd load
"""


@contextlib.contextmanager
def running_daemon(
    release: Guest, wheel: Path | None, initrd_mib: int, cpus: int = 1
) -> Iterator[Machine]:
    """A booted guest whose daemon has loaded its image.

    Args:
        release: what boots.
        wheel: the product; None builds it.
        initrd_mib: size of the initrd, which is the guest's own, padded with zeros.
        cpus: how many it has.
    """
    with tempfile.TemporaryDirectory(prefix="kdumphpd-bench-") as name:
        directory = Path(name)
        image = build_or_reuse(release, TREE / "build/vm")
        if wheel is None:
            (directory / "wheel").mkdir()
            wheel = build_wheel(TREE, directory / "wheel")
        overlay = Overlay(directory / "overlay")
        add_product(overlay, release, wheel, TREE / "systemd", CONFIG)
        overlay.write(f"/etc/systemd/system/{FILE_UNIT}", _FILE_UNIT)
        with Machine(image, directory / "vm", overlay, MachineOptions(cpus=cpus)) as vm:
            size = max(initrd_mib * MIB, image.initramfs.stat().st_size)
            vm.guest.run(f"cp /boot/capture.img {INITRD} && truncate -s {size} {INITRD} && sync")
            # Not waited for here: wait_for_unit shows the journal where it fails.
            vm.guest.run(f"systemctl start --no-block {UNIT}")
            vm.guest.wait_for_unit(UNIT, 120)
            yield vm


def online(vm: Machine, cpus: int) -> None:
    """Have 1 or 2 of the guest's CPUs online.

    Not by plugging: QEMU 7.2's software emulation now and then dies of a CPU that comes, and
    always of memory that goes after a CPU went.
    """
    vm.guest.run(f"echo {cpus - 1} >/sys/devices/system/cpu/cpu1/online")
    vm.wait_for_cpus(cpus)


def where(vm: Machine) -> str:
    """What the guest runs on, for the report."""
    chosen = accelerator.choose(vm.image.kernel)
    kind = "KVM" if chosen.startswith("kvm") else "SOFTWARE EMULATION (QEMU tcg)"
    release = vm.guest.run("uname -r").strip()
    return f"in a guest under {kind}, kernel {release}"


def facts(vm: Machine) -> dict[str, str]:
    """What the time of a load depends on, whoever makes it."""
    return {
        "kernel": vm.guest.run("uname -r").strip(),
        "initrd": f"{vm.guest.run(f'stat -c %s {INITRD}').strip()} bytes",
        "kexec-tools": vm.guest.run("kexec --version").split()[-1],
    }


class Records:
    """The daemon's journal, read on from where it was read last."""

    def __init__(self, guest: GuestShell) -> None:
        self._guest = guest
        self._cursor = ""
        self.take()

    def take(self) -> list[dict[str, Any]]:
        """Records that came in since the last time."""
        after = f"--after-cursor='{self._cursor}'" if self._cursor else ""
        text = self._guest.run(f"journalctl -q -o json -t kdumphpd {after}")
        entries = [json.loads(line) for line in text.splitlines()]
        if entries:
            self._cursor = entries[-1]["__CURSOR"]
        return [one for one in entries if "KDUMPHPD_EVENT" in one]
