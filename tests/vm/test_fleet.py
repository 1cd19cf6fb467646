"""Many hosts: the Ansible role, and journals in one place as packaging/FLEET.md has it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.rig import (
    CAPTURE_COMMAND_LINE,
    FLEET,
    GIB,
    GuestImage,
    Journal,
    Machine,
    MachineOptions,
    Overlay,
    add_product,
    build_or_reuse,
)

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

TREE = Path(__file__).parents[2]
PAGE = (TREE / "packaging/FLEET.md").read_text()

IMAGE = {
    "source": "explicit",
    "kernel": "/boot/vmlinuz",
    "initrd": "/boot/capture.img",
    "command_line": CAPTURE_COMMAND_LINE,
}

# What the site's own authority would issue.
CERTIFICATES = """\
set -e
mkdir -p /etc/ssl/ca /etc/ssl/private
cd /etc/ssl
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
openssl req -x509 $new -subj /CN=authority -keyout private/authority.pem -out ca/trusted.pem
for name in remote upload; do
    openssl req -x509 $new -CA ca/trusted.pem -CAkey private/authority.pem \
        -subj /CN=collector.example.com -addext subjectAltName=DNS:collector.example.com \
        -addext basicConstraints=critical,CA:false \
        -keyout private/journal-$name.pem -out certs/journal-$name.pem
done
"""


@pytest.fixture(scope="session")
def fleet() -> GuestImage:
    return build_or_reuse(FLEET, TREE / "build/vm")


class Controller:
    """ansible-playbook, which reaches one guest through a guest agent for it alone."""

    def __init__(self, directory: Path, socket: Path) -> None:
        self.agent = socket
        self._inventory = directory / "inventory"
        self._variables = directory / "variables.json"
        self._inventory.write_text(
            f"[kdump]\nguest ansible_connection=guest_agent ansible_user=root"
            f" ansible_guest_agent_socket={socket}\n"
        )

    def options(self) -> MachineOptions:
        """A machine with the agent's channel."""
        channel = f"socket,id=ansible,path={self.agent},server=on,wait=off"
        port = "virtserialport,chardev=ansible,name=ansible"
        return MachineOptions(qemu_arguments=("-chardev", channel, "-device", port))

    def play(self, variables: dict[str, object], *arguments: str) -> tuple[dict[str, int], str]:
        """Run site.yml; return the counts of the recap, and all that it printed."""
        self._variables.write_text(json.dumps(variables))
        command = [sys.executable, "-m", "ansible.cli.playbook", "--inventory", self._inventory]
        command += [TREE / "packaging/ansible/site.yml", "-e", f"@{self._variables}", *arguments]
        environment = {
            "ANSIBLE_CONNECTION_PLUGINS": str(Path(__file__).parent / "connection_plugins"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "LC_ALL": "C.UTF-8",  # Ansible insists on UTF-8
            "PYTHONPATH": str(TREE),
        }
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        recap = re.search(r"^guest +: (.*)$", done.stdout, re.MULTILINE)
        assert recap, done.stdout
        counts = {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap[1])}
        assert (done.returncode == 0) == (counts["failed"] == 0), done.stdout
        return counts, done.stdout


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    # A socket's name must be short (sun_path is 108 bytes).
    with tempfile.TemporaryDirectory(prefix="vm-fleet-") as directory:
        yield Controller(tmp_path, Path(directory) / "agent")


def test_role_installs_configures_and_verifies(
    fleet: GuestImage, wheel: Path, controller: Controller, tmp_path: Path
) -> None:
    if f"cp{fleet.guest.python.replace('.', '')}" not in wheel.name:
        pytest.skip(f"{wheel.name} is for another Python than the guest's {fleet.guest.python}")
    variables = {"kdumphpd_file": str(wheel), "kdumphpd_config": {"image": IMAGE}}
    overlay = Overlay(tmp_path / "overlay")
    with Machine(fleet, tmp_path / "vm", overlay, controller.options()) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.run("mkdir /run/ansible")
        guest.start("exec qemu-ga -p /dev/virtio-ports/ansible -t /run/ansible -f /run/ansible/pid")
        assert guest.try_run("command -v kdumphpd")[0] != 0

        counts, said = controller.play(variables)
        assert counts["failed"] == 0 < counts["changed"], said
        assert guest.run("systemctl is-enabled kdumphpd") == "enabled\n"
        assert guest.run("kdumphpd audit").split()[:2] == ["verdict", "complete"]
        assert "kdumphpd" in guest.run("journalctl --list-catalog")
        assert journal.records("started")[0]["KDUMPHPD_BACKEND"] == "full"

        counts, said = controller.play(variables)
        assert (counts["failed"], counts["changed"]) == (0, 0), said
        assert len(journal.records("started")) == 1  # the service was left alone

        guest.run("kexec -p -u")
        counts, said = controller.play(variables, "--tags", "kdumphpd_verify")
        assert (counts["failed"], counts["changed"]) == (1, 0), said
        assert "the loaded crash kernel is unloaded: no crash kernel is loaded" in said


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def files_on_page() -> dict[str, str]:
    """The files that the page shows, by the path that the words before them end with."""
    found = re.findall(r"`(/etc/\S+)`[^`]*:\n\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return dict(found)


def test_page_collects_journals_and_answers(fleet: GuestImage, wheel: Path, tmp_path: Path) -> None:
    (collector,) = re.findall(r'`J="(.*)"`', PAGE)
    queries = [f'J="{collector}"; {block.strip()}' for block in blocks(PAGE) if "$J" in block]
    lost, look_at, latest, heard, longest = queries
    overlay = Overlay(tmp_path / "overlay")
    add_product(overlay, fleet.guest, wheel, TREE / "systemd")
    for path, text in files_on_page().items():
        overlay.write(path, text)
    overlay.write("/etc/hosts", "127.0.0.1 localhost collector.example.com\n")
    with Machine(fleet, tmp_path / "vm", overlay) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        guest.run("journalctl --update-catalog")  # as a package does
        guest.run(CERTIFICATES)
        for command in (one for one in blocks(PAGE) if one.startswith("systemctl enable")):
            guest.run(command)

        # A host that is updated while the collector is down, and loses its crash kernel.
        guest.run("hostname first && systemctl start kdumphpd", timeout=120)
        guest.wait_until(f"{heard} | grep -x first", 60)
        guest.run("systemctl stop systemd-journal-remote.socket systemd-journal-remote.service")
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        (updated,) = journal.wait_for(1, "updated")
        guest.run("kexec -p -u && echo online >/sys/devices/system/cpu/cpu0/uevent")
        journal.wait_for(1, "disarmed")
        guest.run("systemctl start systemd-journal-remote.socket")
        # Another one that is well.
        guest.run("hostname second && systemctl restart kdumphpd", timeout=120)
        guest.wait_until(f"{heard} | grep -x second", 60)

        # After an outage records may be there twice.
        def ask(query: str) -> list[list[str]]:
            lines = dict.fromkeys(guest.run(query).splitlines())
            return [line.split("\t") for line in lines]

        ((host, message),) = ask(lost)
        assert host == "first"
        assert message.startswith("another program unloaded the crash image")
        shown = guest.run(look_at)
        assert message in shown
        assert "Subject: " in shown
        assert [line[:2] for line in ask(latest)] == [["first", "0"], ["second", "1"]]
        assert ask(heard) == [["first"], ["second"]]
        assert ask(longest) == [[updated["KDUMPHPD_UNARMED_USEC"], "first"]]
