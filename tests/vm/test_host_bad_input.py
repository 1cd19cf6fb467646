"""Bad input on a host with kdump: what is loaded stays and follows, or kdump's rule serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.kdump_host import (
    DROP_IN,
    IN_FORCE,
    LIBRARY,
    PATIENCE,
    SHADOWED,
    SYSCONFIG,
    Software,
    full_loads_by_us,
    host,
    kept_by_the_rule,
    rules_read,
    wait_for_words,
    wait_until_kept,
)
from tests.vm.rig import GIB, Journal, Machine
from tests.vm.scenarios import audit

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

# Loads follow each other closely here.
CONFIG = "[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"
OURS_AND_COMPLETE = (
    """found=$(kdumphpd audit --json) && echo "$found" | grep -q '"managed_by": "kdumphpd"'"""
)


@pytest.fixture
def vm(software: Software, tmp_path: Path) -> Iterator[Machine]:
    with host(software, tmp_path, config=CONFIG) as vm:
        vm.guest.wait_for_unit("kdumphpd.service", PATIENCE)
        wait_until_kept(vm)
        yield vm


def test_bad_input(vm: Machine, software: Software) -> None:
    keeps_what_is_loaded(vm, software)
    leaves_it_to_kdump(vm)


def keeps_what_is_loaded(vm: Machine, software: Software) -> None:
    """What we have loaded stays and follows hotplug, whatever becomes of kdump."""
    guest, journal = vm.guest, Journal(vm.guest)
    sysconfig = guest.read(SYSCONFIG)
    library = guest.read(LIBRARY)
    full = len(full_loads_by_us(journal))

    guest.write(SYSCONFIG, f'{sysconfig}\nKDUMP_COMMANDLINE="no end\n')
    wait_for_words(vm, "what is loaded stays: /etc/sysconfig/kdump has a syntax error")
    follows(vm, journal)
    guest.write(SYSCONFIG, sysconfig)

    guest.run(f"mv {software.initrd} /boot/elsewhere.img; touch {SYSCONFIG}")
    wait_for_words(vm, f"what is loaded stays: initrd {software.initrd}")
    follows(vm, journal)
    guest.run(f"mv /boot/elsewhere.img {software.initrd}")

    guest.write(LIBRARY, f"{library}\nprepare_cmdline() {{ sleep infinity; }}\n")
    guest.run(f"touch {SYSCONFIG}")
    follows(vm, journal)
    wait_for_words(vm, r"what is loaded stays: .*\(prepare_cmdline\) did not finish within 30 s")
    guest.write(LIBRARY, library)
    guest.wait_until("! pgrep -x sleep", 90)

    # Held by another: nothing is loaded past it, and at its end at once.
    holder = guest.start("exec flock --no-fork /run/lock/kdump sleep 1000")
    updates = len(journal.records("updated"))
    vm.hot_add_cpu()
    guest.wait_until(
        "systemctl show -P StatusText kdumphpd"
        " | grep -q 'an update waits, kdump.s lock /run/lock/kdump has been held by process'",
        60,
    )
    assert audit(vm)["verdict"] == "stale"
    assert guest.read("/sys/kernel/kexec_crash_loaded").strip() == "1"
    guest.run(f"kill {holder}")
    (*_, updated) = journal.wait_for(updates + 1, "updated")
    assert (updated["KDUMPHPD_CHANGE"], updated["KDUMPHPD_BACKEND"]) == ("cpu 1 added", "delta")
    wait_until_kept(vm)
    assert len(full_loads_by_us(journal)) == full
    assert rules_read(vm) == SHADOWED


def leaves_it_to_kdump(vm: Machine) -> None:
    """Where we cannot know what to load, or cannot keep kdump's rule from it, the rule stays."""
    guest, journal = vm.guest, Journal(vm.guest)
    sysconfig = guest.read(SYSCONFIG)
    guest.run("systemctl stop kdumphpd && kdumpctl restart")
    guest.write(SYSCONFIG, f'{sysconfig}\nKDUMP_COMMANDLINE="no end\n')
    guest.run("systemctl start kdumphpd")
    wait_for_words(vm, "another image is loaded, and what kdump would load is not known")
    assert rules_read(vm) == IN_FORCE
    kept_by_the_rule(vm)
    assert audit(vm)["managed_by"] == "other"
    adopted = len(journal.records("adopted"))
    guest.write(SYSCONFIG, sysconfig)
    journal.wait_for(adopted + 1, "adopted")
    wait_until_kept(vm)
    assert rules_read(vm) == SHADOWED

    guest.run("systemctl stop kdumphpd")
    guest.run(f"mkdir -p {Path(DROP_IN).parent}")
    guest.write(DROP_IN, "[Service]\nReadOnlyPaths=/run/udev\n")
    guest.run("systemctl daemon-reload && systemctl start kdumphpd")
    wait_for_words(vm, "Read-only file system, so the distribution.s hotplug rule stays")
    assert rules_read(vm) == IN_FORCE
    adopted = len(journal.records("adopted"))
    kept_by_the_rule(vm)
    journal.wait_for(adopted + 1, "adopted")
    guest.wait_until(OURS_AND_COMPLETE, PATIENCE)


def follows(vm: Machine, journal: Journal) -> None:
    """A DIMM costs one delta load, and our image is complete after it."""
    count = len(journal.records("updated"))
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    (updated,) = journal.wait_for(count + 1, "updated")[count:]
    assert updated["KDUMPHPD_BACKEND"] == "delta"
    wait_until_kept(vm)
