"""`FakeHost` on a kernel with kexec_file_load and CONFIG_CRASH_HOTPLUG."""

from __future__ import annotations

import re
from pathlib import Path

from tests.unit.fake_crash_hotplug import CrashHotplugKernel
from tests.unit.fake_kernel import MIB
from tests.unit.host_fixture import FakeHost


class HotplugHost(FakeHost):
    """Its oracles also know images that the kernel made."""

    kernel: CrashHotplugKernel

    def __init__(self, directory: Path, crashkernel: int = 64 * MIB) -> None:
        kernel = CrashHotplugKernel.q35(directory, crashkernel=crashkernel, cpus=(0, 1))
        super().__init__(directory, kernel=kernel)
        assert isinstance(self.kernel, CrashHotplugKernel)

    def live_header(self) -> int:
        if self.block() is not None:
            return super().live_header()
        return int(self.file_arguments()[0], 16)

    def file_arguments(self) -> tuple[str, str]:
        """The header's address and the rest of the command line of a file-loaded image."""
        end = self.kernel.reservation.end + 1
        tail = self.kernel.read_memory(end - MIB, MIB)
        found = re.findall(rb"elfcorehdr=0x([0-9a-f]+) ([^\0]*)\0", tail)
        assert len(found) == 1, found
        address, rest = found[0]
        return address.decode(), rest.decode()

    def assert_described(self) -> None:
        """Complete; notes of CPUs that are not there do no harm."""
        assert self.problem(exact=False) is None
