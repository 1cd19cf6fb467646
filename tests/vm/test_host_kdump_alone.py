"""kdump without the product: the stand-in does what the real scripts do, where it matters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    IDLE,
    LIBRARY,
    LOADED,
    SYSCONFIG,
    Software,
    host,
    is_loaded,
    rule_runs,
    run_as_unit,
)
from tests.vm.rig import GIB, Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

LOG = "/run/kexec.log"
TELLING = f"""\
#!/bin/sh
echo "$*" >>{LOG}
exec /usr/sbin/kexec.real "$@"
"""
ASK = (
    f". {SYSCONFIG}; . /usr/lib/dracut/dracut-functions.sh; . {LIBRARY};"
    " . /lib/kdump/kdump-logger.sh; dlog_init; prepare_kdump_bootinfo; echo $KDUMP_INITRD"
)


@pytest.fixture
def kdump(software: Software, tmp_path: Path) -> Iterator[Machine]:
    """A host with kdump alone; /run/kexec.log has what kexec was asked for."""
    with host(software, tmp_path, product=False) as vm:
        vm.guest.run("mv /usr/sbin/kexec /usr/sbin/kexec.real")
        vm.guest.write("/usr/sbin/kexec", TELLING, 0o755)
        yield vm


def asked(vm: Machine, command: str) -> list[list[str]]:
    """What ``command`` had kexec do, a list of arguments for each time."""
    vm.guest.run(f": >{LOG}; {command}", timeout=180)
    return [line.split() for line in vm.guest.read(LOG).splitlines()]


def test_kdump_alone(kdump: Machine, software: Software) -> None:
    guest = kdump.guest
    guest.run("systemctl is-active kdump && kdumpctl status")
    assert is_loaded(kdump)
    unload = ["-p", "-u"]
    assert asked(kdump, "kdumpctl start") == [], "what is loaded already is good enough"
    for verb in ("restart", "reload"):
        first, (*options, initrd, kernel) = asked(kdump, f"kdumpctl {verb}")
        assert first == unload
        assert options[:2] == ["-s", "-p"]
        assert (initrd, kernel) == (f"--initrd={software.initrd}", software.kernel)

    # Traced, it loads another command line. In a sandbox, it has another initrd.
    _, traced = asked(kdump, "bash -x kdumpctl restart 2>/dev/null")
    has_rd_debug = "xtrace" in guest.read(LIBRARY)
    assert ("rd.debug" in traced) == has_rd_debug
    in_sandbox = run_as_unit(kdump, ASK, "ProtectSystem=strict", "ReadWritePaths=/var/lib")
    assert in_sandbox.split()[-1].startswith("/var/lib/kdump/")

    # Its lock keeps "status" waiting, too.
    holder = guest.start("exec flock --no-fork /run/lock/kdump sleep 1000")
    guest.wait_until("! flock -n /run/lock/kdump true", 30)
    assert guest.try_run("timeout 5 kdumpctl status")[0] == 124
    guest.run(f"kill {holder}")
    guest.wait_until("flock -n /run/lock/kdump true", 30)

    # A test loads kdump's image with one word more. Without the crash it stays.
    if "kdump_test" in guest.read("/usr/bin/kdumpctl"):
        guest.run("mount --bind /dev/null /proc/sysrq-trigger")
        _, test = asked(kdump, "kdumpctl test --force")
        assert any(word.startswith("kdump_test_id=") for word in test)
        guest.run("umount /proc/sysrq-trigger")

    # The hotplug rule: one reload for all of a DIMM's events.
    guest.run(f": >{LOG}")
    dimm = kdump.hot_add_dimm(GIB)
    kdump.wait_for_memory(dimm)
    guest.wait_until(f"grep -q -e --initrd {LOG}", 120)
    assert rule_runs(kdump) >= 8
    guest.wait_until(IDLE, 120)

    # A reload that fails has unloaded before; the unit stays active.
    guest.run(f"mv {software.kernel} /boot/elsewhere")
    assert guest.try_run("kdumpctl reload")[0] != 0
    assert guest.read(LOADED).strip() == "0"
    guest.run(f"mv /boot/elsewhere {software.kernel} && systemctl is-active kdump")
