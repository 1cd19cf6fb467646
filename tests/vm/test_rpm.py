"""The RPM, installed and removed by rpm itself: it brings up the service, and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.rig import GIB, GuestImage, Journal, Machine, Overlay, build_rpm, needs_python
from tests.vm.rig.product import CONFIG

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

TREE = Path(__file__).parents[2]
PACKAGE = "/srv/kdumphpd-1.rpm"
NEXT_PACKAGE = "/srv/kdumphpd-2.rpm"
VENDOR_RULE = "/usr/lib/udev/rules.d/98-kexec.rules"
SHADOW = "/run/udev/rules.d/98-kexec.rules"
RULE_RAN = "/run/vendor-rule-ran"
CONFIG_FILE = "/etc/kdumphpd/kdumphpd.toml"

# All of the disk but rpm's database, which Debian's rpm keeps in root's home, and
# what there is of ours in /run, where other programs' files come and go.
LIST_FILES = """\
find / -xdev ! -path '*/.rpmdb*' ! -path '/var/lib/rpm*'
find /run -path '*kdump*' -o -path '/run/udev/rules.d/*'
"""


@pytest.fixture
def host(bookworm: GuestImage, tmp_path: Path) -> Overlay:
    """What is there before the package comes: a vendor's hotplug rule, and the RPMs as files."""
    rpm = build_rpm(TREE, tmp_path / "rpm", "1")
    if needs_python(rpm) != bookworm.guest.python:
        pytest.skip(f"{rpm.name} is for Python {needs_python(rpm)}, as this machine has it")
    overlay = Overlay(tmp_path / "overlay")
    ran = f'RUN+="/usr/bin/touch {RULE_RAN}"'
    overlay.write(VENDOR_RULE, f'SUBSYSTEM=="memory", ACTION=="add", {ran}\n')
    overlay.copy(rpm, PACKAGE)
    overlay.copy(build_rpm(TREE, tmp_path / "next-rpm", "2"), NEXT_PACKAGE)
    return overlay


def upgrade(vm: Machine, journal: Journal) -> None:
    """The next release goes on with what the running one loaded."""
    guest = vm.guest
    flags = "rpm -q --queryformat '[%{FILENAMES} %{FILEFLAGS:fflags}\\n]' kdumphpd"
    assert f"{CONFIG_FILE} cn\n" in guest.run(flags), "config(noreplace)"
    pid = "systemctl show --property MainPID kdumphpd"
    before = guest.run(pid)

    guest.run(f"rpm -U --nodeps --force-debian {NEXT_PACKAGE}", timeout=120)
    assert guest.run("rpm -q --queryformat %{RELEASE} kdumphpd") == "2"
    assert guest.run(pid) != before, "it was restarted"
    (adopted,) = journal.wait_for(1, "adopted")
    assert adopted["MESSAGE"] == "the loaded image is the configured one"
    assert guest.read(CONFIG_FILE) == CONFIG
    assert guest.run(f"ls {CONFIG_FILE}*").split() == [CONFIG_FILE]

    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    updates = journal.wait_for(2, "updated")
    assert {one["KDUMPHPD_BACKEND"] for one in updates} == {"delta"}
    full = [one for one in journal.records() if one.get("KDUMPHPD_BACKEND") == "full"]
    assert [one["KDUMPHPD_EVENT"] for one in full] == ["started"], "the first start's alone"
    assert guest.run("kdumphpd audit").split()[:2] == ["verdict", "complete"]
    guest.run(f"udevadm settle && test -e {SHADOW} && test ! -e {RULE_RAN}")


def test_rpm_serves_and_leaves_nothing(bookworm: GuestImage, host: Overlay, tmp_path: Path) -> None:
    with Machine(bookworm, tmp_path / "vm", host) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.run(f"rm {RULE_RAN}")  # it ran at boot, so the stand-in works
        # The package brings its own; these are here for the tests of the wheel.
        guest.run(f"rm -r {bookworm.guest.site_packages}/pydantic*")
        guest.run("rm -r /usr/lib/python3/dist-packages/structlog")
        before = set(guest.run(LIST_FILES).splitlines())

        # --nodeps: the dependencies are dpkg's packages here, unknown to rpm.
        guest.run(f"rpm -i --nodeps --force-debian {PACKAGE}")
        guest.run("rpm -V --nodeps kdumphpd")
        code, state, _ = guest.try_run("systemctl is-enabled kdumphpd")
        assert (code, state) == (1, "disabled\n")  # the administrator's decision
        assert "kdumphpd" in guest.run("journalctl --list-catalog")

        guest.write(CONFIG_FILE, CONFIG)
        guest.run("systemctl enable --now kdumphpd", timeout=120)
        assert journal.wait_for(1, "started")[0]["KDUMPHPD_BACKEND"] == "full"
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        # The burst's last word: no event of it is still to come.
        (closing,) = journal.wait_for(1, "audited", timeout=120)
        assert closing["KDUMPHPD_VERDICT"] == "complete"
        assert [
            (one["KDUMPHPD_CHANGE"], one["KDUMPHPD_BACKEND"]) for one in journal.records("updated")
        ] == [(f"memory {dimm.start:#x}-{dimm.end:#x}, 1 GiB, 8 blocks added", "delta")]
        assert guest.run("kdumphpd audit").split()[:2] == ["verdict", "complete"]
        guest.run(f"udevadm settle && test -e {SHADOW} && test ! -e {RULE_RAN}")

        upgrade(vm, journal)

        guest.run("rpm -e kdumphpd", timeout=120)
        guest.run(f"test ! -e {SHADOW} && test ! -e {RULE_RAN}")
        vm.hot_add_dimm(GIB)
        guest.wait_until(f"test -e {RULE_RAN}", 60)

        left = set(guest.run(LIST_FILES).splitlines()) - before
        assert left == {
            "/etc/kdumphpd",
            f"{CONFIG_FILE}.rpmsave",  # rpm keeps what the administrator wrote
            "/usr/share/licenses",  # Fedora's package filesystem has it
        }
        assert guest.read(f"{CONFIG_FILE}.rpmsave") == CONFIG
        assert "kdumphpd" not in guest.run("journalctl --list-catalog")
        assert "kdumphpd" not in guest.run("systemctl list-units --all --plain")
