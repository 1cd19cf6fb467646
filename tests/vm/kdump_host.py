"""A host with kdump's scripts and the product: what the tests of the two together share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from tests.vm.rig import (
    GIB,
    GuestImage,
    Journal,
    Machine,
    MachineOptions,
    Overlay,
    RigError,
    add_kdump,
    add_product,
    add_real_kdump,
    add_rpm,
    kernel_release,
    marked,
)
from tests.vm.scenarios import audit, vmcore_is_complete

TREE = Path(__file__).parents[2]

SYSCONFIG = "/etc/sysconfig/kdump"
LIBRARY = "/usr/lib/kdump/kdump-lib.sh"
VENDOR_RULE = "98-kexec.rules"
IN_FORCE, SHADOWED = "/usr/lib/udev/rules.d", "/run/udev/rules.d"
DROP_IN = "/etc/systemd/system/kdumphpd.service.d/test.conf"
LOADED = "/sys/kernel/kexec_crash_loaded"
# No event and no kdumpctl that follows from one is still to come.
IDLE = "udevadm settle --timeout=10 && ! pgrep -x kdumpctl && ! pgrep kdump-udev"
RULES_TEST = "udevadm test /sys/devices/system/cpu/cpu0"

# Under emulation a load takes 10 to 100 times as long as on a host, and as it must not be
# more than 1 % of the time, the next may have to wait for minutes.
PATIENCE = 300

# Of the unit: what makes its view of the host another than an administrator's.
_SANDBOX = (
    *("Protect", "Private", "ReadWrite", "Capability", "NoNewPrivileges", "Lock"),
    *("Restrict", "SystemCall", "IPAddress", "UMask"),
)


@dataclass(frozen=True)
class Software:
    """What a guest gets: kdump's scripts and the product.

    Attributes:
        image: the guest.
        scripts: a checkout of the real scripts; None for the stand-in.
        package: the product: an RPM, or a wheel where the guest's Python has no RPM.
    """

    image: GuestImage
    scripts: Path | None
    package: Path

    @property
    def initrd(self) -> str:
        """kdump's initrd, as kdumpctl calls it."""
        return f"/boot/initramfs-{kernel_release(self.image.kernel)}kdump.img"

    @property
    def kernel(self) -> str:
        """kdump's kernel, as kdumpctl calls it."""
        return f"/boot/vmlinuz-{kernel_release(self.image.kernel)}"

    def add_kdump(self, overlay: Overlay) -> None:
        """Lay kdump over the guest, and enable it."""
        if self.scripts is None:
            add_kdump(overlay, self.image)
        else:
            add_real_kdump(overlay, self.image, self.scripts)

    def add_product(self, overlay: Overlay) -> None:
        """Lay the product over the guest as it is shipped, and enable it."""
        if self.package.suffix == ".rpm":
            add_rpm(overlay, self.image.guest, self.package)
        else:
            config = (TREE / "packaging/kdumphpd.toml").read_text()
            add_product(overlay, self.image.guest, self.package, TREE / "systemd", config)
        overlay.enable("kdumphpd.service")

    def add_early_kdump(self, overlay: Overlay) -> None:
        """Have another initrd loaded before kdump.service, as the initramfs would."""
        overlay.write(self.initrd, marked(self.image, "kdump"))
        overlay.write("/boot/initramfs-earlykdump", marked(self.image, "early"))
        overlay.write("/boot/kernel-earlykdump", self.image.kernel.read_bytes())
        overlay.enable("early-kdump.service", "basic.target")


def host(
    software: Software,
    directory: Path,
    *,
    product: bool = True,
    config: str = "",
    drop_in: str = "",
    early: bool = False,
    files: Mapping[str, bytes] | None = None,
) -> Machine:
    """A machine in which kdump.service and the product's service start at boot.

    Args:
        software: what it gets.
        directory: for its files.
        product: whether the product is there.
        config: the configuration, if not the shipped one.
        drop_in: of the product's unit; as it is shipped without.
        early: whether early kdump loads first.
        files: more of them, by their path in the guest.
    """
    overlay = Overlay(directory / "overlay")
    software.add_kdump(overlay)
    if product:
        software.add_product(overlay)
    if config:
        overlay.write("/etc/kdumphpd/kdumphpd.toml", config)
    if drop_in:
        overlay.write(DROP_IN, drop_in)
    if early:
        software.add_early_kdump(overlay)
    for path, content in (files or {}).items():
        overlay.write(path, content)
    arguments = ("rd.earlykdump",) if early else ()
    options = MachineOptions(kernel_arguments=arguments)
    return Machine(software.image, directory / "vm", overlay, options)


def rules_read(vm: Machine, name: str = VENDOR_RULE) -> str:
    """The directory from which udev takes the rules file ``name``."""
    (directory,) = rules_in(vm.guest.run(f"{RULES_TEST} 2>&1"), name)
    return directory


def rules_in(text: str, name: str) -> list[str]:
    """The same out of what ``udevadm test`` printed, for each time it ran."""
    lines = [one for one in text.splitlines() if "Reading rules file" in one]
    return [str(Path(one.split()[-1]).parent) for one in lines if one.endswith(f"/{name}")]


def rule_runs(vm: Machine) -> int:
    """How often kdump's hotplug rule has answered an event: systemd says each."""
    ran = vm.guest.run("journalctl -b -o cat _PID=1 | grep -c kdump-udev-throttler || true")
    return int(ran)


def is_loaded(vm: Machine) -> bool:
    return vm.guest.read(LOADED).strip() == "1"


def full_loads_by_us(journal: Journal) -> list[dict[str, Any]]:
    return [one for one in journal.records() if one.get("KDUMPHPD_BACKEND") == "full"]


def wait_for_words(vm: Machine, words: str, timeout: float = 90) -> None:
    """Wait for a record of ours that matches ``words``, an extended regular expression."""
    wanted = f"journalctl -b SYSLOG_IDENTIFIER=kdumphpd | grep -Eq {quote(words)}"
    vm.guest.wait_until(wanted, timeout)


def wait_until_kept(vm: Machine) -> None:
    """Wait until the loaded image is ours to keep, complete, and kdump's rule shadowed."""
    managed = """kdumphpd audit --json | tee /run/audit.json | grep -q '"managed_by": "kdumphpd"'"""
    complete = """grep -q '"verdict": "complete"' /run/audit.json"""
    shadow = f"test -e {SHADOWED}/{VENDOR_RULE}"
    _wait_until(vm, f"{IDLE} && {managed} && {complete} && {shadow}")
    assert rules_read(vm) == SHADOWED


def wait_until_left_to_the_rule(vm: Machine) -> None:
    """Wait until kdump's rule is in force, whatever is loaded."""
    _wait_until(vm, f"test ! -e {SHADOWED}/{VENDOR_RULE}")
    assert rules_read(vm) == IN_FORCE


def _wait_until(vm: Machine, command: str) -> None:
    """As GuestShell.wait_until, patiently; if in vain, with what is there and was said."""
    try:
        vm.guest.wait_until(command, PATIENCE)
    except RigError as error:
        _, found, _ = vm.guest.try_run(
            "kdumphpd audit; cat /run/kdumpctl.log | sort | uniq -c; pgrep -a kdump"
        )
        raise RigError(f"{error}\n{found}\n{Journal(vm.guest).text()}") from error


def kept_by_the_rule(vm: Machine) -> None:
    """A DIMM is answered by kdump's own rule, and its image is complete after it."""
    seen = rule_runs(vm)
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    _wait_until(vm, f"{IDLE} && kdumphpd audit")
    assert rule_runs(vm) > seen


def kept_by_us(vm: Machine) -> None:
    """A DIMM is answered by us, and the image is complete after it."""
    seen = rule_runs(vm)
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    wait_until_kept(vm)
    assert rule_runs(vm) == seen


def plan(vm: Machine, *, in_sandbox: bool = False) -> dict[str, Any]:
    """Kernel, initrd and command line as ``kdumphpd plan`` says, by hand or as the unit is."""
    command = "/usr/bin/kdumphpd plan --json"
    if in_sandbox:
        unit = vm.guest.read("/usr/lib/systemd/system/kdumphpd.service").replace("\\\n", "")
        properties = [one for one in unit.splitlines() if one.startswith(_SANDBOX)]
        assert "ProtectSystem=strict" in properties
        found = json.loads(run_as_unit(vm, command, *properties))
    else:
        found = json.loads(vm.guest.run(command, timeout=180))
    return {key: found[key] for key in ("kernel", "initrd", "command_line")}


def run_as_unit(vm: Machine, command: str, *properties: str) -> str:
    """What ``command`` prints in a unit of its own with these properties.

    A oneshot to file: without D-Bus, systemd-run can neither wait nor take the output.
    """
    words = ("Type=oneshot", "StandardOutput=truncate:/run/as-unit", *properties)
    options = " ".join(f"-p {quote(one)}" for one in words)
    vm.guest.run(f"systemd-run --quiet {options} /bin/bash -c {quote(command)}", timeout=180)
    return vm.guest.read("/run/as-unit")


def ends_well(vm: Machine, *, by_us: bool = True, initrd: str = "", line: str = "") -> None:
    """Another DIMM and a CPU, then a crash: the vmcore is complete, and the journal was true.

    Args:
        vm: is crashed, and has ended afterwards.
        by_us: whether we keep the image current; kdump's rule otherwise.
        initrd: pattern of the mark in the initrd that must have booted.
        line: pattern of the command line that must have booted.
    """
    runs = rule_runs(vm)
    dimm = vm.hot_add_dimm(GIB)
    vm.wait_for_memory(dimm)
    cpus = int(vm.guest.run("nproc")) + 1
    vm.hot_add_cpu()
    vm.wait_for_cpus(cpus)
    _wait_until(vm, f"{IDLE} && kdumphpd audit")
    if by_us:
        wait_until_kept(vm)
        assert rule_runs(vm) == runs, "kdump's rule is shadowed"
    else:
        assert rules_read(vm) == IN_FORCE
        assert rule_runs(vm) > runs, "kdump's rule is in force"
    journal_is_true(vm)
    vmcore_is_complete(vm, dimm, cpus)
    if initrd:
        assert re.search(f"^CAPTURE-INITRD {initrd}", vm.console.text(), re.MULTILINE)
    if line:
        (*_, booted) = re.findall(r"Command line: (.*)", vm.console.text())
        assert re.search(line, booted), booted


def journal_is_true(vm: Machine) -> None:
    """What the last records say is what is, and nothing has gone wrong that nobody meant."""
    journal, found = Journal(vm.guest), audit(vm)
    (*_, verdict) = [one for one in journal.records() if "KDUMPHPD_VERDICT" in one]
    assert verdict["KDUMPHPD_VERDICT"] == found["verdict"], journal.text()
    (*_, armed) = [one for one in journal.records() if "KDUMPHPD_ARMED" in one]
    assert (armed["KDUMPHPD_ARMED"] == "1") == found["loaded"], journal.text()
    assert "Traceback" not in journal.text(), journal.text()
