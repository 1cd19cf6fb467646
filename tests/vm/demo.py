"""``make demo``: the main job on a real kernel, shown as an operator would see it.

A guest boots with the service, gets two DIMMs and a CPU, loses a DIMM, and
crashes; the vmcore that its capture kernel saves is checked by tools that share
no code with the product. Leaves build/demo/report.json.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tests.vm.rig import (
    BOOKWORM,
    GIB,
    MIB,
    Dimm,
    GuestImage,
    Journal,
    Machine,
    Overlay,
    RigError,
    add_product,
    build_or_reuse,
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    hold_pattern,
    initramfs,
    ram_in_vmcore,
)
from tests.vm.rig.guest_shell import GuestShell
from tests.vm.rig.product import CONFIG

TREE = Path(__file__).parents[2]
DIRECTORY = TREE / "build/demo"
CONTENT = b"written to hot-added memory before the crash"

# A kdump initramfs of RHEL or Fedora has some 32 MiB; the rig's has 9.
INITRD = "/boot/kdump.img"
INITRD_SIZE = 32 * MIB

# What 98-kexec.rules ends in, with kexec-tools; prints microseconds.
_UNLOAD_RELOAD = f"""
load='kexec -c -p /boot/vmlinuz --initrd={INITRD} --append=console=ttyS0'
$load
for round in 1 2 3; do
    began=$(date +%s%N); kexec -p -u && $load; ended=$(date +%s%N)
    echo $(((ended - began) / 1000))
done
kexec -p -u
"""


def main() -> int:
    """Run the demo; 0 if the vmcore is complete."""
    began = time.monotonic()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S"
    )
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    try:
        report = run()
    except RigError as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    (DIRECTORY / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    passed = is_complete(report)
    print(table(report))
    print(f"\n{'complete' if passed else 'INCOMPLETE'}, in {time.monotonic() - began:.0f} s")
    print("report: build/demo/report.json   vmcore: build/demo/vm/capture/vmcore")
    return 0 if passed else 1


def run() -> dict[str, Any]:
    """The story; returns the report."""
    image = build_or_reuse(BOOKWORM, TREE / "build/vm")
    overlay = Overlay(DIRECTORY / "overlay")
    (wheel,) = (TREE / "build/dist").glob("*.whl")
    config = CONFIG.replace("/boot/capture.img", INITRD)
    add_product(overlay, BOOKWORM, wheel, TREE / "systemd", config)
    add_initrd(overlay, image)
    with Machine(image, DIRECTORY / "vm", overlay) as vm:
        guest, journal = vm.guest, Journal(vm.guest)
        unload_reload = [int(line) for line in guest.run(_UNLOAD_RELOAD, timeout=180).split()]
        guest.run("systemctl start kdumphpd", timeout=180)
        dimm = hotplug(vm, journal)
        verdict = audit(guest)
        print("\n--- journalctl -u kdumphpd\n" + journal.text(), end="\n\n", flush=True)

        pattern = hold_pattern(guest, dimm, CONTENT)
        report: dict[str, Any] = {
            "kernel": guest.run("uname -r").strip(),
            "cpus_at_crash": int(guest.run("nproc")),
            "ram_at_crash": expected_ram(guest.read("/proc/iomem")),
            "uevents": sum(journal.numbers("KDUMPHPD_UEVENTS", "audited", "unchanged")),
            "updates": len(journal.records("updated")),
            "delta_load_usec": journal.numbers("KDUMPHPD_UNARMED_USEC", "updated"),
            "full_load_usec": journal.numbers("KDUMPHPD_UNARMED_USEC", "started")[0],
            "unload_reload_usec": int(statistics.median(unload_reload)),
            "verdict": verdict,
        }
        addresses = pattern.addresses()
        capture = vm.crash()
    report["cpu_notes_in_vmcore"] = cpu_notes_in_vmcore(capture.header)
    report["ram_in_vmcore"] = ram_in_vmcore(capture.header)
    report["pattern_found"] = find_pattern(capture.vmcore, addresses, CONTENT)
    return report


def add_initrd(overlay: Overlay, image: GuestImage) -> None:
    """Give the guest an initramfs of a real one's size: ours, and bytes that do not compress."""
    ballast = DIRECTORY / "ballast"
    ballast.mkdir()
    size = INITRD_SIZE - image.initramfs.stat().st_size
    (ballast / "ballast").write_bytes(os.urandom(size))
    archive = DIRECTORY / "ballast.cpio"
    initramfs.pack(ballast, archive)
    overlay.write(INITRD, image.initramfs.read_bytes() + archive.read_bytes())
    shutil.rmtree(ballast)
    archive.unlink()


def hotplug(vm: Machine, journal: Journal) -> Dimm:
    """Plug two DIMMs and a CPU, unplug a DIMM; returns the one that stays."""
    stays = vm.hot_add_dimm(2 * GIB)
    vm.wait_for_memory(stays)
    journal.wait_for(1, "updated")
    goes = vm.hot_add_dimm(2 * GIB)
    vm.wait_for_memory(goes)
    journal.wait_for(2, "updated")
    vm.hot_add_cpu()
    vm.wait_for_cpus(2)
    journal.wait_for(3, "updated")
    vm.hot_remove_dimm(goes)
    journal.wait_for(4, "updated")
    # The burst's last word comes when nothing has changed for a while.
    journal.wait_for(1, "audited", timeout=120)
    return stays


def audit(guest: GuestShell) -> str:
    """The product's own verdict."""
    _, stdout, stderr = guest.try_run("kdumphpd audit --json")
    if not stdout:
        raise RigError(f"kdumphpd audit said nothing: {stderr}")
    return str(json.loads(stdout)["verdict"])


def is_complete(report: dict[str, Any]) -> bool:
    """Whether the vmcore holds all that the machine had."""
    return bool(
        report["pattern_found"]
        and report["ram_in_vmcore"] == report["ram_at_crash"]
        and report["cpu_notes_in_vmcore"] == report["cpus_at_crash"]
        and report["verdict"] == "complete"
        and report["updates"] == 4
    )


def table(report: dict[str, Any]) -> str:
    """The report in 80 columns."""
    delta = statistics.median(report["delta_load_usec"])
    rows = [
        ("kernel", report["kernel"]),
        ("initrd of the crash image", f"{INITRD_SIZE // MIB} MiB"),
        ("CPUs at the crash", report["cpus_at_crash"]),
        ("CPUs with registers in the vmcore", report["cpu_notes_in_vmcore"]),
        *(("memory at the crash", _range(one)) for one in report["ram_at_crash"]),
        *(("memory in the vmcore", _range(one)) for one in report["ram_in_vmcore"]),
        ("pattern from hot-added memory found", "yes" if report["pattern_found"] else "NO"),
        ("kdumphpd's verdict before the crash", report["verdict"]),
        ("uevents", report["uevents"]),
        ("updates", report["updates"]),
        ("not armed: unload and reload (kexec-tools)", _time(report["unload_reload_usec"])),
        ("not armed: full load", _time(report["full_load_usec"])),
        ("not armed: delta load (median)", _time(delta)),
        ("unload and reload / delta load", f"{report['unload_reload_usec'] / delta:.0f}"),
    ]
    return "\n".join(f"{label:<44}{value}" for label, value in rows)


def _range(one: tuple[int, int]) -> str:
    return f"{one[0]:#x}-{one[1]:#x}"


def _time(usec: float) -> str:
    return f"{usec / 1000:.1f} ms (under emulation)"


if __name__ == "__main__":
    sys.exit(main())
