"""What a user without any privilege can do to a host with kdump-tools: nothing.

/var/crash is everybody's, as on Ubuntu (mode 3777), and cron removes old files from it. So the
names of kdump-tools' kexec command and lock are his to make.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdumphpd import processes
from tests.vm.kdump_tools import unpack_kdump_tools
from tests.vm.rig import (
    GIB,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    add_product,
)
from tests.vm.scenarios import audit

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

TREE = Path(__file__).parents[2]
CONFIG = "[image]\nsource = 'auto'\n[update]\nmax_disarmed_percent = 10\nsettle_seconds = 2.0\n"
COMMAND = "/var/crash/kexec_cmd"
LOCK = "/var/crash/kdump_lock"
NOT_KNOWN = "what kdump would load is not known, what is loaded stays"
#: What he puts there, and what the daemon is to say of it.
IN_ITS_PLACE = {
    f"mkfifo {COMMAND}": "not a regular file",
    f"truncate -s 1G {COMMAND}": "belongs to user 65534",
    f"ln -s /etc/shadow {COMMAND}": "not a regular file",
}

#: More events than the kernel keeps; one like the one before it would be dropped.
FLOOD = """\
import os
limit = int(open('/proc/sys/fs/inotify/max_queued_events').read())
names = '/var/crash/a', '/var/crash/b'
open(names[0], 'w').close()
for number in range(limit + 1000):
    os.rename(names[number % 2], names[(number + 1) % 2])
"""


def as_nobody(command: str) -> str:
    words = "setpriv --reuid=nobody --regid=nogroup --clear-groups sh -c"
    return f"{words} {shlex.quote(command)}"


def not_known(journal: Journal) -> list[str]:
    """Records that kdump's answer cannot be used, oldest first."""
    return [one["MESSAGE"] for one in journal.records("status") if NOT_KNOWN in one["MESSAGE"]]


def wait_for_not_known(journal: Journal, seen: int) -> str:
    """The one record of its kind after the first ``seen``."""
    for count in range(1, 200):
        journal.wait_for(count, "status", timeout=90)
        said = not_known(journal)
        if len(said) > seen:
            (new,) = said[seen:]
            return new
    raise AssertionError(journal.text())


def state(vm: Machine) -> tuple[str, int]:
    """The daemon's process, and the most memory that it ever had, in KiB."""
    guest = vm.guest
    pid = guest.run("systemctl show -P MainPID kdumphpd").strip()
    assert pid != "0"
    status = guest.read(f"/proc/{pid}/status")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return pid, int(peak)


@pytest.fixture(scope="module")
def vm(
    bookworm: GuestImage, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """A host whose kdump-tools has loaded, and kdumphpd adopted; it is booted once."""
    directory = tmp_path_factory.mktemp("local_user")
    overlay = Overlay(directory / "overlay")
    add_product(overlay, bookworm.guest, wheel, TREE / "systemd", CONFIG)
    with Machine(bookworm, directory / "vm", overlay) as vm:
        unpack_kdump_tools(vm)
        vm.guest.run("install -d -m 3777 /var/crash")
        vm.guest.run("systemctl start kdump-tools kdumphpd", timeout=180)
        Journal(vm.guest).wait_for(1, "started", "adopted", timeout=180)
        yield vm


def test_a_local_user_neither_chooses_the_crash_kernel_nor_stops_the_daemon(vm: Machine) -> None:
    guest, journal = vm.guest, Journal(vm.guest)
    (started,) = journal.records("started", "adopted")
    assert started["KDUMPHPD_BACKEND"] == "full"
    command = guest.read(COMMAND)
    image, (daemon, memory) = audit(vm), state(vm)
    assert (image["verdict"], image["managed_by"]) == ("complete", "kdumphpd")

    # His initrd and command line, in a file of his.
    his = command.replace("irqpoll", "init=/tmp/his").replace("/var/lib/kdump/initrd", "/tmp/his")
    assert his != command
    guest.write("/tmp/his_command", his)
    guest.run("cp /boot/capture.img /tmp/his.img")
    guest.run(f"rm {COMMAND}")
    guest.run(as_nobody(f"cat /tmp/his_command >{COMMAND}"))
    assert "belongs to user 65534, not to root" in wait_for_not_known(journal, 0)
    assert audit(vm) == image

    for count, (attack, said) in enumerate(IN_ITS_PLACE.items(), 1):
        guest.run(as_nobody(f"rm {COMMAND}; {attack}"))
        # The kernel tells of a FIFO or a file that nobody wrote only that it was made.
        guest.run("systemctl kill --kill-whom=main -s HUP kdumphpd")
        assert said in wait_for_not_known(journal, count), attack
        assert state(vm)[0] == daemon, attack
    code, _, error = guest.try_run("kdumphpd plan")
    assert code == 66
    assert "not a regular file" in error
    assert "root:" not in journal.text(), "of /etc/shadow"
    assert audit(vm) == image
    assert state(vm)[1] < memory + (64 << 10), "it has not read the GiB"

    # And all the while it does its work.
    said = journal.records("status", "adopted", "foreign", "disarmed")
    guest.run(as_nobody(f"python3 -c {shlex.quote(FLOOD)}"), timeout=180)
    assert journal.records("status", "adopted", "foreign", "disarmed") == said
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    journal.wait_for(1, "updated")
    assert [one["KDUMPHPD_BACKEND"] for one in journal.records("updated")] == ["delta"]


def test_a_local_user_does_not_block_updates_by_a_lock(vm: Machine) -> None:
    guest, journal = vm.guest, Journal(vm.guest)
    before = len(journal.records("updated"))
    mode = "stat -c %a:%U"
    assert guest.run(f"{mode} /run/kdumphpd/lock") == "600:root\n"
    assert guest.run(f"{mode} {LOCK}") == "600:root\n", "made by our first look"

    # One that he may read, from before there was a kdumphpd.
    guest.run(f"chmod 0644 {LOCK}")
    guest.run(f"systemd-run --uid=nobody --unit=his flock {LOCK} sleep 3600")
    guest.wait_until(f"! flock -n {LOCK} true", 30)
    dimm = vm.hot_add_dimm(1 * GIB)
    vm.wait_for_memory(dimm)
    journal.wait_for(before + 1, "updated")
    assert guest.run(f"{mode} {LOCK}") == "600:root\n"
    assert guest.try_run(as_nobody(f"flock -n {LOCK} true"))[0] != 0
    guest.run("systemctl is-active his")

    # And a FIFO in the place of the lock.
    guest.run(f"rm {LOCK}")
    guest.run(as_nobody(f"mkfifo {LOCK}"))
    vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    journal.wait_for(before + 2, "updated")
    assert audit(vm)["verdict"] == "complete"


def test_a_unit_ends_with_all_that_it_started(vm: Machine) -> None:
    """What kdump's library or command leaves in a session of its own is in the unit's cgroup."""
    daemon = "setsid --fork sleep 86399"
    for script, limit in ((daemon, 60), (f"{daemon}; sleep 86399", 5)):
        command = processes.as_unit(("/bin/sh", "-c", script), "leaves.service", "Leaves", limit)
        vm.guest.try_run(shlex.join(command), timeout=120)
        assert vm.guest.try_run("pgrep -f 'sleep 8639[9]'")[1] == "", script
