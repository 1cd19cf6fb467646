"""However the daemon ends beside kdump: its rule serves until we are back, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    DROP_IN,
    IN_FORCE,
    PATIENCE,
    RULES_TEST,
    SHADOWED,
    TREE,
    VENDOR_RULE,
    Software,
    ends_well,
    full_loads_by_us,
    host,
    kept_by_the_rule,
    kept_by_us,
    rule_runs,
    rules_in,
    rules_read,
    wait_until_kept,
)
from tests.vm.rig import GIB, Journal, Machine, build_rpm

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

KILLS = 20

# Loads follow each other closely here, and the service is killed more often than a
# unit may start.
CONFIG = "[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"
AFTER_DEATH = "/run/rules-after-death"
# Whenever the service has ended, after the unit's own ExecStopPost=: what udev would read.
RESTARTED_AT_ONCE = f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
RestartSec=100ms
ExecStopPost=+/bin/sh -c '{RULES_TEST} >>{AFTER_DEATH} 2>&1'
"""


@pytest.fixture
def vm(software: Software, tmp_path: Path) -> Iterator[Machine]:
    with host(software, tmp_path, config=CONFIG, drop_in=RESTARTED_AT_ONCE) as vm:
        vm.guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)
        yield vm


def test_hotplug_right_after_each_end(software: Software, tmp_path: Path) -> None:
    with host(software, tmp_path) as vm:
        guest = vm.guest
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)

        # In the middle of a burst, and of kdumpctl's work.
        work = guest.start("for i in 1 2 3; do kdumpctl reload; done")
        dimm = vm.hot_add_dimm(2 * GIB)
        vm.wait_for_memory(dimm)
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        guest.wait_until(f"! kill -0 {work}", PATIENCE)
        wait_until_kept(vm)

        guest.run("systemctl kill -s KILL kdumphpd")
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)

        guest.run("systemctl stop kdumphpd")
        assert rules_read(vm) == IN_FORCE
        kept_by_the_rule(vm)
        guest.run("systemctl start kdumphpd", timeout=PATIENCE)
        wait_until_kept(vm)

        upgrade(vm, software, tmp_path)
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)
        kept_by_us(vm)
        ends_well(vm)


def upgrade(vm: Machine, software: Software, directory: Path) -> None:
    """To the next release of the package; of a wheel, what its scriptlet would do."""
    if software.package.suffix != ".rpm":
        vm.guest.run("systemctl restart kdumphpd", timeout=PATIENCE)
        return
    vm.guest.push(software.package, "/srv/kdumphpd-1.rpm")
    vm.guest.push(build_rpm(TREE, directory / "next", "2"), "/srv/kdumphpd-2.rpm")
    # Its files are there already, but rpm does not know of them.
    vm.guest.run("rpm -i --nodeps --force-debian --replacefiles /srv/kdumphpd-1.rpm", PATIENCE)
    vm.guest.run("rpm -U --nodeps --force-debian /srv/kdumphpd-2.rpm", PATIENCE)
    assert vm.guest.run("rpm -q --queryformat %{RELEASE} kdumphpd") == "2"


def test_killed_again_and_again(vm: Machine) -> None:
    guest, journal = vm.guest, Journal(vm.guest)
    for number in range(1, KILLS + 1):
        # In the middle of a burst, each time a little later: the first ones before the
        # update is through.
        if number % 3 == 0:
            dimm = vm.hot_add_dimm(GIB)
            guest.run(f"sleep {number / 20}; systemctl kill -s KILL kdumphpd")
            vm.wait_for_memory(dimm)
        else:
            guest.run("systemctl kill -s KILL kdumphpd")
            assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
        journal.wait_for(number + 1, "started")
        wait_until_kept(vm)
        assert rules_read(vm) == SHADOWED
        assert rules_in(guest.read(AFTER_DEATH), VENDOR_RULE) == [IN_FORCE] * number
        # Between two daemons the distribution's rule is in force: what it loads is adopted
        # by a full load, and nothing else costs one.
        assert len(full_loads_by_us(journal)) <= 1 + rule_runs(vm), journal.text()

    for command in ("systemctl stop kdumphpd", "systemctl start kdumphpd"):
        guest.run(command)
        expected = IN_FORCE if "stop" in command else SHADOWED
        assert rules_read(vm) == expected
    guest.write(DROP_IN, "[Service]\nRestart=no\n")
    guest.run("systemctl daemon-reload && systemctl kill -s KILL kdumphpd")
    guest.wait_until("systemctl is-failed kdumphpd", 30)
    assert rules_read(vm) == IN_FORCE
