"""On hosts with a kdump of their own: Debian's kdump-tools, and a stand-in for kdumpctl."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    GIB,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    add_kdump,
    add_product,
)
from tests.vm.scenarios import audit, crash_is_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

TREE = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "stand_in"
KILLS = 20

# Loads follow each other closely here, and the service is killed more often than a
# unit may start.
CONFIG = "[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"
VENDOR_RULE = "98-kexec.rules"
OURS_AND_COMPLETE = (
    """found=$(kdumphpd audit --json) && echo "$found" | grep -q '"managed_by": "kdumphpd"'"""
)
RULES_TEST = "udevadm test /sys/devices/system/cpu/cpu0"
AFTER_DEATH = "/run/rules-after-death"
# Whenever the service has ended, after the unit's own ExecStopPost=: what udev would read.
RESTARTED_AT_ONCE = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
RestartSec=100ms
ExecStopPost=+/bin/sh -c '{RULES_TEST} >>{AFTER_DEATH} 2>&1'
"""

KDUMP_TOOLS = f"""\
USE_KDUMP=1
KDUMP_KERNEL=/var/lib/kdump/vmlinuz
KDUMP_INITRD=/var/lib/kdump/initrd.img
KDUMP_CMDLINE="{CAPTURE_COMMAND_LINE}"
KDUMP_CMDLINE_APPEND="irqpoll"
KDUMP_COREDIR="/var/crash"
"""


@pytest.fixture
def overlay(bookworm: GuestImage, wheel: Path, tmp_path: Path) -> Overlay:
    """The product with source = "auto", not enabled."""
    overlay = Overlay(tmp_path / "overlay")
    add_product(overlay, bookworm.guest, wheel, TREE / "systemd", CONFIG)
    return overlay


@pytest.fixture
def host(bookworm: GuestImage, overlay: Overlay, tmp_path: Path) -> Iterator[Machine]:
    """A guest in which the stand-in's kdump.service and the product's service run."""
    add_kdump(overlay, STAND_IN)
    overlay.write("/etc/systemd/system/kdumphpd.service.d/test.conf", RESTARTED_AT_ONCE)
    overlay.enable("kdumphpd.service")
    with Machine(bookworm, tmp_path / "vm", overlay) as vm:
        vm.guest.wait_for_unit("kdumphpd.service")
        yield vm


def assert_kept(vm: Machine) -> None:
    """Our image is loaded, and a crash now would leave a complete vmcore."""
    found = audit(vm)
    assert (found["verdict"], found["managed_by"]) == ("complete", "kdumphpd"), found


def rules_read(vm: Machine, name: str) -> str:
    """The directory from which udev takes the rules file ``name``."""
    (directory,) = rules_in(vm.guest.run(f"{RULES_TEST} 2>&1"), name)
    return directory


def rules_in(text: str, name: str) -> list[str]:
    """The same out of what ``udevadm test`` printed, for each time it ran."""
    lines = [one for one in text.splitlines() if "Reading rules file" in one]
    return [str(Path(one.split()[-1]).parent) for one in lines if one.endswith(f"/{name}")]


@dataclass(frozen=True)
class FullLoads:
    """How often the whole image was loaded, by us and by kdump's hotplug rule."""

    ours: int
    kdumps: int


def full_loads(vm: Machine, journal: Journal) -> FullLoads:
    ours = [one for one in journal.records() if one.get("KDUMPHPD_BACKEND") == "full"]
    return FullLoads(len(ours), vm.guest.read("/run/kdumpctl.log").split().count("reload"))


def test_kdump_tools(bookworm: GuestImage, overlay: Overlay, tmp_path: Path) -> None:
    with Machine(bookworm, tmp_path / "vm", overlay) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.run(
            "dpkg-deb -x /var/lib/rig/kdump-tools_*.deb /tmp/kdump && cd /tmp/kdump"
            " && cp -a etc usr var / && cp -a lib/. /usr/lib/ && systemctl daemon-reload"
            # What kdump-config would make anew, in a minute, if it were not there.
            " && cp /boot/capture.img /var/lib/kdump/initrd.img-$(uname -r)"
            " && cp /etc/kdump/sysctl.conf /var/lib/kdump/latest_sysctls-$(uname -r)"
        )
        guest.write("/etc/default/kdump-tools", KDUMP_TOOLS)
        guest.run("systemctl start kdumphpd")
        (stopped,) = journal.wait_for(1, "disarmed")
        assert "kdump is stopped" in stopped["MESSAGE"]
        assert rules_read(vm, "50-kdump-tools.rules") == "/run/udev/rules.d"

        guest.run("systemctl start kdump-tools")
        (adopted,) = journal.wait_for(1, "adopted")
        assert adopted["KDUMPHPD_BACKEND"] == "full"
        assert "kexec_cmd" in guest.run("kdumphpd plan")

        dimm = vm.hot_add_dimm(1 * GIB)
        vm.wait_for_memory(dimm)
        journal.wait_for(1, "updated")
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        updates = journal.wait_for(2, "updated")
        assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
        assert not journal.records("foreign")
        assert_kept(vm)
        crash_is_complete(vm, dimm, cpus=2)


def test_kdumpctl(host: Machine) -> None:
    guest, journal = host.guest, Journal(host.guest)
    assert journal.records("started")[0]["KDUMPHPD_BACKEND"] == "full"
    assert_kept(host)
    assert rules_read(host, VENDOR_RULE) == "/run/udev/rules.d"

    # Stopped stays stopped.
    guest.run("kdumpctl stop")
    journal.wait_for(1, "disarmed")
    host.hot_add_cpu()
    host.wait_for_cpus(2)
    assert audit(host)["verdict"] == "unloaded"
    for count, command in enumerate(("start", "restart", "reload"), 1):
        guest.run(f"kdumpctl {command}")
        journal.wait_for(count, "adopted")
        assert_kept(host)

    # Another command line, without a restart of anything.
    guest.run("sed -i 's/nr_cpus=1/& hest=1/' /etc/sysconfig/kdump")
    (*_, adopted) = journal.wait_for(4, "adopted")
    assert adopted["MESSAGE"].startswith("what is to be loaded has changed")
    assert_kept(host)

    # kdumpctl in the middle of a burst.
    assert not journal.records("foreign")
    count = len(journal.records("adopted"))
    reload = "for i in 1 2 3; do kdumpctl reload; done"
    process = guest.start(reload)
    dimm = host.hot_add_dimm(2 * GIB)
    host.wait_for_memory(dimm)
    host.hot_add_cpu()
    host.wait_for_cpus(3)
    guest.wait_until(f"! kill -0 {process}", 60)
    journal.wait_for(count + 1, "adopted")
    guest.wait_until(OURS_AND_COMPLETE, 60)
    assert_kept(host)

    assert not journal.records("foreign")

    # An administrator's own image, by either call, is not touched until kdump acts.
    for style in ("-c", "-s"):
        seen = len(journal.records("foreign"))
        adopted_before = len(journal.records("adopted"))
        guest.run(f"kexec {style} -p /boot/vmlinuz --initrd=/boot/capture.img --append=hand=1")
        guest.run("echo online >/sys/devices/system/cpu/cpu1/uevent")
        journal.wait_for(seen + 1, "foreign")
        assert audit(host)["managed_by"] != "kdumphpd"
        guest.run("kdumpctl restart")
        journal.wait_for(adopted_before + 1, "adopted")
        assert_kept(host)
    assert not journal.records("repaired")


def test_killed_again_and_again(host: Machine) -> None:
    guest, journal = host.guest, Journal(host.guest)
    assert_kept(host)
    loads = full_loads(host, journal)
    for number in range(1, KILLS + 1):
        if number % 3 == 0:  # in the middle of a burst, each time a little later
            dimm = host.hot_add_dimm(GIB)
            guest.run(f"sleep {number / 20}; systemctl kill -s KILL kdumphpd")
            host.wait_for_memory(dimm)
        else:
            guest.run("systemctl kill -s KILL kdumphpd")
            assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
        journal.wait_for(number + 1, "started")
        guest.wait_until("udevadm settle && " + OURS_AND_COMPLETE, 60)
        assert_kept(host)
        assert rules_read(host, VENDOR_RULE) == "/run/udev/rules.d"
        assert rules_in(guest.read(AFTER_DEATH), VENDOR_RULE) == ["/usr/lib/udev/rules.d"] * number
        # Between two daemons the distribution's rule is in force: what it loads is adopted
        # by a full load, and nothing else costs one.
        before, loads = loads, full_loads(host, journal)
        assert loads.ours - before.ours <= loads.kdumps - before.kdumps, journal.text()
    assert loads.kdumps < KILLS, "kdump's own loads are the exception"

    for command in ("systemctl stop kdumphpd", "systemctl start kdumphpd"):
        guest.run(command)
        expected = "/usr/lib/udev/rules.d" if "stop" in command else "/run/udev/rules.d"
        assert rules_read(host, VENDOR_RULE) == expected
    guest.write("/etc/systemd/system/kdumphpd.service.d/test.conf", "[Service]\nRestart=no\n")
    guest.run("systemctl daemon-reload && systemctl kill -s KILL kdumphpd")
    guest.wait_until("systemctl is-failed kdumphpd", 30)
    assert rules_read(host, VENDOR_RULE) == "/usr/lib/udev/rules.d"
