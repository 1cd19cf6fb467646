"""On hosts with a kdump of their own: Debian's kdump-tools, and a stand-in for kdumpctl."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

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

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

TREE = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "stand_in"
KILLS = 20

# Loads follow each other closely here, and the service is killed more often than a
# unit may start.
CONFIG = "[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"
DROP_IN = "/etc/systemd/system/kdumphpd.service.d/test.conf"
SYSCONFIG = "/etc/sysconfig/kdump"
LIBRARY = "/usr/lib/kdump/kdump-lib.sh"
VENDOR_RULE = "98-kexec.rules"
# No event and no kdumpctl that follows from one is still to come.
IDLE = "udevadm settle --timeout=10 && ! pgrep -x kdumpctl"
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
    overlay.write(DROP_IN, RESTARTED_AT_ONCE)
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


def full_loads_by_us(journal: Journal) -> list[dict[str, Any]]:
    return [one for one in journal.records() if one.get("KDUMPHPD_BACKEND") == "full"]


def kdumps_loads(vm: Machine) -> int:
    """How often kdump's hotplug rule, or somebody by hand, had kdumpctl load again."""
    return vm.guest.read("/run/kdumpctl.log").split().count("reload")


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
    for number in range(1, KILLS + 1):
        # In the middle of a burst, each time a little later: the first ones before the
        # update is through.
        if number % 3 == 0:
            dimm = host.hot_add_dimm(GIB)
            guest.run(f"sleep {number / 20}; systemctl kill -s KILL kdumphpd")
            host.wait_for_memory(dimm)
        else:
            guest.run("systemctl kill -s KILL kdumphpd")
            assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
        journal.wait_for(number + 1, "started")
        guest.wait_until(f"{IDLE} && {OURS_AND_COMPLETE}", 120)
        assert rules_read(host, VENDOR_RULE) == "/run/udev/rules.d"
        assert rules_in(guest.read(AFTER_DEATH), VENDOR_RULE) == ["/usr/lib/udev/rules.d"] * number
        # Between two daemons the distribution's rule is in force: what it loads is adopted
        # by a full load, and nothing else costs one.
        assert len(full_loads_by_us(journal)) <= 1 + kdumps_loads(host), journal.text()

    for command in ("systemctl stop kdumphpd", "systemctl start kdumphpd"):
        guest.run(command)
        expected = "/usr/lib/udev/rules.d" if "stop" in command else "/run/udev/rules.d"
        assert rules_read(host, VENDOR_RULE) == expected
    guest.write(DROP_IN, "[Service]\nRestart=no\n")
    guest.run("systemctl daemon-reload && systemctl kill -s KILL kdumphpd")
    guest.wait_until("systemctl is-failed kdumphpd", 30)
    assert rules_read(host, VENDOR_RULE) == "/usr/lib/udev/rules.d"


def test_bad_input(host: Machine) -> None:
    keeps_what_is_loaded(host)
    leaves_it_to_kdump(host)


def keeps_what_is_loaded(host: Machine) -> None:
    """What we have loaded stays and follows hotplug, whatever becomes of kdump."""
    guest, journal = host.guest, Journal(host.guest)
    sysconfig = guest.read(SYSCONFIG)
    library = guest.read(LIBRARY)
    full = len(full_loads_by_us(journal))

    guest.write(SYSCONFIG, f'{sysconfig}\nKDUMP_COMMANDLINE="no end\n')
    wait_for_words(host, "what is loaded stays: /etc/sysconfig/kdump has a syntax error")
    follows(host, journal)
    guest.write(SYSCONFIG, sysconfig)

    guest.run(f"mv /boot/capture.img /boot/elsewhere.img; touch {SYSCONFIG}")
    wait_for_words(host, "what is loaded stays: initrd /boot/capture.img")
    follows(host, journal)
    guest.run("mv /boot/elsewhere.img /boot/capture.img")

    guest.write(LIBRARY, f"{library}\nprepare_cmdline() {{ sleep infinity; }}\n")
    guest.run(f"touch {SYSCONFIG}")
    follows(host, journal)
    wait_for_words(host, r"what is loaded stays: .*\(prepare_cmdline\) did not finish within 30 s")
    guest.write(LIBRARY, library)
    guest.wait_until("! pgrep -x sleep", 90)

    # Held by another: nothing is loaded past it, and at its end at once.
    holder = guest.start("exec flock --no-fork /run/lock/kdump sleep 1000")
    updates = len(journal.records("updated"))
    host.hot_add_cpu()
    guest.wait_until(
        "systemctl show -P StatusText kdumphpd"
        " | grep -q 'an update waits, kdump.s lock /run/lock/kdump has been held by process'",
        60,
    )
    assert audit(host)["verdict"] == "stale"
    assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
    guest.run(f"kill {holder}")
    (*_, updated) = journal.wait_for(updates + 1, "updated")
    assert (updated["KDUMPHPD_CHANGE"], updated["KDUMPHPD_BACKEND"]) == ("cpu 1 added", "delta")
    assert_kept(host)
    assert len(full_loads_by_us(journal)) == full
    assert rules_read(host, VENDOR_RULE) == "/run/udev/rules.d"


def leaves_it_to_kdump(host: Machine) -> None:
    """Where we cannot know what to load, or cannot keep kdump's rule from it, the rule stays."""
    guest, journal = host.guest, Journal(host.guest)
    sysconfig = guest.read(SYSCONFIG)
    guest.run("systemctl stop kdumphpd && kdumpctl restart")
    guest.write(SYSCONFIG, f'{sysconfig}\nKDUMP_COMMANDLINE="no end\n')
    guest.run("systemctl start kdumphpd")
    wait_for_words(host, "another image is loaded, and what kdump would load is not known")
    assert rules_read(host, VENDOR_RULE) == "/usr/lib/udev/rules.d"
    kept_by_the_rule(host)
    assert audit(host)["managed_by"] == "other"
    adopted = len(journal.records("adopted"))
    guest.write(SYSCONFIG, sysconfig)
    journal.wait_for(adopted + 1, "adopted")
    assert_kept(host)
    assert rules_read(host, VENDOR_RULE) == "/run/udev/rules.d"

    guest.run("systemctl stop kdumphpd")
    guest.write(DROP_IN, f"{RESTARTED_AT_ONCE}ReadOnlyPaths=/run/udev\n")
    guest.run("systemctl daemon-reload && systemctl start kdumphpd")
    wait_for_words(host, "Read-only file system, so the distribution.s hotplug rule stays")
    assert rules_read(host, VENDOR_RULE) == "/usr/lib/udev/rules.d"
    adopted = len(journal.records("adopted"))
    kept_by_the_rule(host)
    journal.wait_for(adopted + 1, "adopted")
    guest.wait_until(OURS_AND_COMPLETE, 60)


def wait_for_words(vm: Machine, words: str) -> None:
    """Wait for a record of ours that matches ``words``, an extended regular expression."""
    vm.guest.wait_until(f"journalctl -b SYSLOG_IDENTIFIER=kdumphpd | grep -Eq {quote(words)}", 90)


def follows(vm: Machine, journal: Journal) -> None:
    """A DIMM costs one delta load, and our image is complete after it."""
    count = len(journal.records("updated"))
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    (updated,) = journal.wait_for(count + 1, "updated")[count:]
    assert updated["KDUMPHPD_BACKEND"] == "delta"
    assert_kept(vm)


def kept_by_the_rule(vm: Machine) -> None:
    """A DIMM is answered by kdump's own rule, and its image is complete after it."""
    seen = kdumps_loads(vm)
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    vm.guest.wait_until(f"{IDLE} && kdumphpd audit", 120)
    assert kdumps_loads(vm) > seen
