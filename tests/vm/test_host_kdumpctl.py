"""kdumpctl's verbs on a host with kdump: ours follows each, and stopped stays stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    IDLE,
    PATIENCE,
    SYSCONFIG,
    Software,
    ends_well,
    host,
    is_loaded,
    plan,
    rules_read,
    wait_until_kept,
    wait_until_left_to_the_rule,
)
from tests.vm.rig import Journal, Machine
from tests.vm.rig.kdump import STAND_IN

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# kexec(8) that loads nothing any more.
ONLY_UNLOADS = """\
#!/bin/sh
case "$*" in *-u*) exec /usr/sbin/kexec.real "$@" ;; esac
exit 1
"""


def test_verbs(software: Software, tmp_path: Path) -> None:
    with host(software, tmp_path) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)

        # Whoever asks kdump, in the unit's sandbox or not, gets kdumpctl's own answer.
        planned = plan(vm)
        assert (planned["kernel"], planned["initrd"]) == (software.kernel, software.initrd)
        assert plan(vm, in_sandbox=True) == planned

        guest.run("kdumpctl status")
        for verb in ("reload", "restart"):
            count = len(journal.records("adopted"))
            guest.run(f"kdumpctl {verb}", timeout=PATIENCE)
            journal.wait_for(count + 1, "adopted", timeout=PATIENCE)
            wait_until_kept(vm)

        # In emulation dracut takes minutes; tests/vm/test_real_initrd.py has it build one.
        guest.push(STAND_IN / "mkdumprd", "/usr/sbin/mkdumprd")
        count = len(journal.records("adopted"))
        guest.run("kdumpctl rebuild", timeout=PATIENCE)
        journal.wait_for(count + 1, "adopted", timeout=PATIENCE)
        wait_until_kept(vm)

        for stop, start in (
            ("kdumpctl stop", "kdumpctl start"),
            ("systemctl stop kdump", "systemctl start kdump"),
        ):
            stays_stopped(vm, stop)
            count = len(journal.records("adopted"))
            guest.run(start, timeout=PATIENCE)
            journal.wait_for(count + 1, "adopted", timeout=PATIENCE)
            wait_until_kept(vm)
        assert not journal.records("foreign"), journal.text()

        booted = re.escape(planned["command_line"].split(" elfcorehdr=")[0])
        assert plan(vm)["command_line"] == planned["command_line"]
        ends_well(vm, initrd="built-", line=f"^{booted} elfcorehdr=")


def stays_stopped(vm: Machine, stop: str) -> None:
    """Whatever comes, nothing is loaded, and it is no alarm."""
    guest, journal = vm.guest, Journal(vm.guest)
    count = len(journal.records("disarmed"))
    guest.run(stop, timeout=PATIENCE)
    (*_, stopped) = journal.wait_for(count + 1, "disarmed", timeout=PATIENCE)
    assert (stopped["PRIORITY"], stopped["KDUMPHPD_ARMED"]) == ("4", "0"), stopped
    assert "kdump is stopped" in stopped["MESSAGE"]
    wait_until_left_to_the_rule(vm)
    guest.run("kdumpctl status; echo online >/sys/devices/system/cpu/cpu0/uevent")
    # Also for those who come after.
    guest.run("systemctl restart kdumphpd", timeout=PATIENCE)
    guest.wait_until(IDLE, PATIENCE)
    assert not is_loaded(vm), journal.text()
    wait_until_left_to_the_rule(vm)


def test_failed_reload(software: Software, tmp_path: Path) -> None:
    with host(software, tmp_path) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)

        # What keeps kexec from it need not keep us: the image is loaded again at once.
        guest.run("mv /usr/sbin/kexec /usr/sbin/kexec.real")
        guest.write("/usr/sbin/kexec", ONLY_UNLOADS, 0o755)
        fails_to_reload(vm)
        wait_until_kept(vm)
        guest.run("mv /usr/sbin/kexec.real /usr/sbin/kexec && systemctl is-active kdump")

        # What keeps all of us from it is waited for.
        guest.run(f"sed -i 's/^KEXEC_ARGS=.*/KEXEC_ARGS=\"-s --no-such-option\"/' {SYSCONFIG}")
        fails_to_reload(vm)
        guest.run(f"sed -i 's/^KEXEC_ARGS=.*/KEXEC_ARGS=\"-s\"/' {SYSCONFIG}")
        wait_until_kept(vm)
        assert not journal.records("foreign"), journal.text()
        ends_well(vm)


def fails_to_reload(vm: Machine) -> None:
    """kdumpctl unloads and loads nothing: that is crit, and nobody calls it stopped."""
    journal = Journal(vm.guest)
    count = len(journal.records("disarmed"))
    assert vm.guest.try_run("kdumpctl reload", PATIENCE)[0] != 0
    (*_, lost) = journal.wait_for(count + 1, "disarmed", timeout=PATIENCE)
    assert (lost["PRIORITY"], lost["KDUMPHPD_ARMED"]) == ("2", "0"), lost
    assert "stopped" not in lost["MESSAGE"]


def test_early_kdump(software: Software, tmp_path: Path) -> None:
    with host(software, tmp_path, early=True) as vm:
        vm.guest.wait_for_unit("kdumphpd.service", PATIENCE)
        early = vm.guest.run("journalctl -b -o cat -u early-kdump -u kdump")
        assert "already" in early, "kdump.service is content with early kdump's image"
        wait_until_kept(vm)
        assert rules_read(vm) != "", early
        assert not Journal(vm.guest).records("foreign")
        ends_well(vm, initrd="kdump$")
