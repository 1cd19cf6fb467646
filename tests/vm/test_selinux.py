"""A host that enforces an SELinux policy: the service is confined, and is denied nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kdump_host import wait_until_kept
from tests.vm.rig import (
    GIB,
    SELINUX,
    GuestImage,
    Journal,
    Machine,
    MachineOptions,
    Overlay,
    add_kdump,
    build_or_reuse,
    build_rpm,
    needs_python,
)
from tests.vm.scenarios import crash_is_complete, wait_until_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TREE = Path(__file__).parents[2]
PACKAGES = "/srv/rpm"
# An archive has no labels: what must have them is copied and labelled in the guest. The
# reference policy's own domains for kdumpctl and kexec lack what these need (kdump_t has no
# sys_admin, so kexec reads zeros in /proc/iomem): here they run as any other program.
KDUMP = "/srv/kdump"
INSTALL_KDUMP = f"""\
cp -r {KDUMP}/. /
restorecon -RF /boot /etc /usr/bin /usr/sbin /usr/lib/dracut /usr/lib/kdump
restorecon -RF /usr/lib/systemd /usr/lib/udev
chcon -t bin_t /usr/bin/kdumpctl /usr/sbin/kexec
systemctl daemon-reload
"""
# A load takes so long under emulation that the next would have to wait for minutes.
HURRY = "[update]\nmax_disarmed_percent = 10\n"
SHADOW = "/run/udev/rules.d/98-kexec.rules"
DOMAIN = "system_u:system_r:kdumphpd_t:s0"
# Each denial that concerns us, as the kernel told journald; what is not denied is not told.
DENIALS = "journalctl -b --no-pager -o cat _TRANSPORT=audit | grep 'avc:  denied.*kdumphpd_' || :"


@pytest.fixture(scope="session")
def selinux() -> GuestImage:
    return build_or_reuse(SELINUX, TREE / "build/vm")


@pytest.fixture
def host(selinux: GuestImage, tmp_path: Path) -> Overlay:
    """The two packages as files, and kdump's."""
    rpm = build_rpm(TREE, tmp_path / "rpm", "1")
    if needs_python(rpm) != selinux.guest.python:
        pytest.skip(f"{rpm.name} is for Python {needs_python(rpm)}, as this machine has it")
    overlay = Overlay(tmp_path / "overlay")
    for package in sorted((tmp_path / "rpm").glob("*.rpm")):
        overlay.copy(package, f"{PACKAGES}/{package.name}")
    kdump = Overlay(overlay.tree / KDUMP.lstrip("/"))
    add_kdump(kdump, selinux)
    return overlay


def label(vm: Machine, path: str) -> str:
    """The type in the label of a file."""
    return vm.guest.run(f"stat --format=%C {path}").strip().split(":")[2]


def test_service_is_confined_and_denied_nothing(
    selinux: GuestImage, host: Overlay, tmp_path: Path
) -> None:
    options = MachineOptions(kernel_arguments=("security=selinux", "enforcing=1"))
    with Machine(selinux, tmp_path / "vm", host, options) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        assert guest.run("getenforce") == "Enforcing\n"
        guest.run(INSTALL_KDUMP, timeout=120)
        guest.run("systemctl start kdump")

        # --nodeps: the dependencies are dpkg's packages here, unknown to rpm.
        guest.run(f"rpm -i --nodeps --force-debian {PACKAGES}/*.rpm", timeout=300)
        assert label(vm, "/usr/bin/kdumphpd") == "kdumphpd_exec_t"
        assert label(vm, "/usr/lib/systemd/system/kdumphpd.service") == "kdumphpd_unit_t"

        guest.write("/etc/kdumphpd/kdumphpd.toml", HURRY)

        # kdump is asked, in a unit of its own, and its image adopted.
        guest.run("systemctl start kdumphpd", timeout=120)
        wait_until_kept(vm)
        pid = guest.run("systemctl show --value --property MainPID kdumphpd").strip()
        assert guest.read(f"/proc/{pid}/attr/current").rstrip("\0\n") == DOMAIN
        assert label(vm, "/run/kdumphpd/lock") == "kdumphpd_runtime_t"
        assert label(vm, SHADOW) == "udev_rules_t"
        guest.run("kdumpctl reload", timeout=120)
        wait_until_kept(vm)
        assert "full" in [one["KDUMPHPD_BACKEND"] for one in journal.records("adopted")]

        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        vm.hot_add_cpu()
        vm.wait_for_cpus(2)
        updates = journal.wait_for(2, "updated", timeout=180)
        assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
        wait_until_complete(vm)

        guest.run("systemctl reload kdumphpd")
        guest.run("systemctl stop kdumphpd", timeout=120)
        guest.run(f"test ! -e {SHADOW}")
        guest.run("systemctl start kdumphpd", timeout=120)
        assert guest.run(f"ls {SHADOW}")
        assert guest.run(DENIALS) == ""
        assert not [one for one in journal.records() if int(one["PRIORITY"]) < 4], journal.text()

        # Confined: what it does not need it may not have. And a denial would be seen.
        code, _, stderr = guest.try_run("kdumphpd plan --config /etc/shadow")
        assert code != 0
        assert "/etc/shadow" in stderr
        assert "Permission denied" in stderr
        (denied,) = guest.run(DENIALS).splitlines()
        assert "shadow_t" in denied
        crash_is_complete(vm, dimm, cpus=2)
