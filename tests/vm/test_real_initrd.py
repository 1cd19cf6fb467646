"""kdump's own capture: mkdumprd builds the initrd, and its kdump.sh saves the vmcore."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kdump_host import PATIENCE, Software, host, wait_until_kept
from tests.vm.rig import GIB
from tests.vm.scenarios import crash_is_complete

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

# dracut needs minutes under emulation.
BUILD_SECONDS = 1800

# The vmcore goes where kdump has it by default, /var/crash of the root file system. That
# is a snapshot which ends with the machine, so the scripts hand it to the rig.
KDUMP_CONF = """\
path /var/crash
core_collector makedumpfile -E --message-level 6 -d 1
extra_modules 9pnet_virtio 9p
kdump_pre /usr/local/sbin/before-dump
kdump_post /usr/local/sbin/after-dump
"""
BEFORE = """\
#!/bin/sh
echo CAPTURE-BEGIN >/dev/console
modprobe 9pnet_virtio
modprobe 9p
mkdir -p /share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 capture /share
dd if=/proc/vmcore of=/share/header bs=64k count=64
"""
AFTER = """\
#!/bin/sh
[ "$1" = 0 ] || echo "CAPTURE-FAILED kdump.sh: $1" >/dev/console
for directory in /kdumproot/var/crash/* /sysroot/var/crash/*; do
	[ -e "$directory/vmcore" ] || continue
	cp "$directory/vmcore" /share/vmcore
	cp "$directory/vmcore-dmesg.txt" /share/dmesg
done
sync
umount /share
echo CAPTURE-DONE >/dev/console
"""


def test_kdumps_own_initrd_saves_a_complete_vmcore(
    software: Software, scripts: Path | None, tmp_path: Path
) -> None:
    if scripts is None:
        pytest.skip("KDUMPHPD_KDUMP_UTILS names no real scripts: make test-real-kdump")
    with host(software, tmp_path) as vm:
        guest = vm.guest
        guest.wait_for_unit("kdumphpd.service", PATIENCE)
        guest.write("/usr/local/sbin/before-dump", BEFORE, 0o755)
        guest.write("/usr/local/sbin/after-dump", AFTER, 0o755)
        guest.write("/etc/kdump.conf", KDUMP_CONF)
        guest.run("mkdir -p /var/crash && kdumpctl rebuild", timeout=BUILD_SECONDS)
        guest.run("kdumpctl restart", timeout=BUILD_SECONDS)
        wait_until_kept(vm)
        listed = guest.run(f"lsinitrd {software.initrd} -f usr/lib/dracut/modules.txt", timeout=120)
        assert "kdumpbase" in listed.split()
        dimm = vm.hot_add_dimm(GIB)
        vm.wait_for_memory(dimm)
        wait_until_kept(vm)
        crash_is_complete(vm, dimm, cpus=1)
