"""Whose image is loaded: kdump's in all its guises is followed, others' are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    PATIENCE,
    SYSCONFIG,
    Software,
    ends_well,
    host,
    kept_by_the_rule,
    plan,
    wait_until_kept,
    wait_until_left_to_the_rule,
)
from tests.vm.rig import Journal, Machine, kernel_release, marked
from tests.vm.scenarios import audit

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

QUOTED = 'hest="a b" last=1'


def test_whose_image(software: Software, tmp_path: Path) -> None:
    release = kernel_release(software.image.kernel)
    leftover = {
        # From a time when /boot was read-only for kdumpctl.
        f"/var/lib/kdump/initramfs-{release}kdump.img": marked(software.image, "leftover")
    }
    with host(software, tmp_path, files=leftover) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)
        assert plan(vm)["initrd"] == software.initrd

        # Who traces kdumpctl has it load another command line.
        adopts(vm, "bash -x /usr/bin/kdumpctl restart")

        # Another command line, in quotes, without a restart of anything.
        word = QUOTED.replace('"', '\\"')
        count = len(journal.records("adopted"))
        guest.write("/run/append", f'KDUMP_COMMANDLINE_APPEND+=" {word}"\n')
        guest.run(f"cat /run/append >>{SYSCONFIG}")
        (*_, adopted) = journal.wait_for(count + 1, "adopted", timeout=PATIENCE)
        assert adopted["MESSAGE"].startswith("what is to be loaded has changed"), adopted
        wait_until_kept(vm)
        assert QUOTED in plan(vm)["command_line"]
        assert not journal.records("foreign"), journal.text()

        # A test is kdump's image with one word more: it must not be replaced before the
        # crash, which does not come here.
        if "kdump_test" in guest.read("/usr/bin/kdumpctl"):
            guest.run("mount --bind /dev/null /proc/sysrq-trigger")
            left_alone(vm, "kdumpctl test --force")
            guest.run("umount /proc/sysrq-trigger")
            adopts(vm, "kdumpctl restart")

        # An administrator's own image, by either call, until kdump acts.
        options = f"--initrd={software.initrd} --append=hand=1"
        for style in ("-c", "-s"):
            left_alone(vm, f"kexec {style} -p {software.kernel} {options}")
            if style == "-c":
                kept_by_the_rule(vm)
                wait_until_kept(vm)
            else:
                adopts(vm, "kdumpctl restart")
        ends_well(vm, initrd="(kdump|built)", line=QUOTED)


def adopts(vm: Machine, command: str) -> None:
    """``command`` has kdump load, and ours follows it."""
    journal = Journal(vm.guest)
    count = len(journal.records("adopted"))
    vm.guest.run(f"{command} >/run/said 2>&1", timeout=PATIENCE)
    journal.wait_for(count + 1, "adopted", timeout=PATIENCE)
    wait_until_kept(vm)


def left_alone(vm: Machine, command: str) -> None:
    """What ``command`` loads stays, and kdump's rule is in force."""
    journal = Journal(vm.guest)
    count = len(journal.records("foreign"))
    vm.guest.run(f"{command} >/run/said 2>&1", timeout=PATIENCE)
    vm.guest.run("echo online >/sys/devices/system/cpu/cpu0/uevent")
    journal.wait_for(count + 1, "foreign", timeout=PATIENCE)
    wait_until_left_to_the_rule(vm)
    assert audit(vm)["managed_by"] != "kdumphpd"
