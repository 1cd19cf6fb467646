"""Debian's kdump-tools on a FakeHost: its files, and images that it or an administrator loads.

::

    kdump = FakeKdump(host)         # installed, and the host's source = "auto"
    changed = kdump.load()          # what the daemon's watch would report
    kdump.by_hand("init=/bin/sh")   # kexec -p of something else, which no file shows
"""

from __future__ import annotations

import contextlib
import fcntl
import struct
from collections.abc import Iterator

from kdumphpd.distribution.watch import Changed
from kdumphpd.machine.ranges import Range
from kdumphpd.service import Service
from tests.unit.host_fixture import COMMAND_LINE, CONFIG, INITRD, KERNEL, FakeHost

_MIB = 1 << 20
_COMMAND = "/var/crash/kexec_cmd"
_LOCK = "/var/crash/kdump_lock"
#: Where the kernel keeps kexec_crash_image, and a struct kimage: anywhere in RAM.
_POINTER_OFFSET = 0x1000
_KIMAGE = 0x600000
_PARAMS_SIZE = 0x8000
#: The watch lost count.
LOST = Changed(frozenset(), lost=True)


class FakeKdump:
    """See the module's docstring."""

    #: The system call of its loads.
    style = "kexec_load"

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.command_path = host.root.path(_COMMAND)
        self.install()
        host.write(str(CONFIG), '[update]\ncommand = ""\n')
        self._pointer = host.kernel.text.start + _POINTER_OFFSET
        host.kernel.show_symbol("kexec_crash_image", self._pointer)

    def install(self) -> None:
        """Its files."""
        self.host.write("/usr/sbin/kdump-config", "")
        self.host.write(_LOCK, "")

    def ask_for(self, command_line: str = COMMAND_LINE, initrd: str = INITRD) -> Changed:
        """Write down another kexec command, as kdump-config does after a load."""
        self.host.write(
            _COMMAND,
            f'/sbin/kexec -p --command-line="{command_line}" --initrd={initrd} {KERNEL}\n',
        )
        return Changed(frozenset({self.command_path}), lost=False)

    def load(self, command_line: str = COMMAND_LINE) -> Changed:
        """``kdump-config load`` or ``reload``."""
        self.by_hand(command_line)
        return self.ask_for(command_line)

    def unload(self) -> None:
        """``kdump-config unload``, which no file shows."""
        self.host.kernel.unload()

    def by_hand(
        self, command_line: str, initrd_name: str = INITRD, kernel_name: str = KERNEL
    ) -> None:
        """``kexec -p``, which no file shows."""
        kernel = self.host.kernel
        kernel.foreign_load(self.style)
        place = kernel.reservation
        initrd = self.host.root.path(initrd_name).read_bytes()
        bzimage = self.host.root.path(kernel_name).read_bytes()
        first, params = place.start + 2 * _MIB, place.end + 1 - _MIB + 0x10000
        kernel.write_memory(first, initrd)
        protected = bzimage[(bzimage[0x1F1] + 1) * 512 :]
        begin = place.start + 16 * _MIB
        kernel.write_memory(begin, protected)
        kernel.write_memory(params, _boot_params(params, command_line, first, len(initrd)))
        segments = (
            Range(begin, begin + -(-len(protected) // 4096) * 4096 - 1),
            Range(first, first + -(-len(initrd) // 4096) * 4096 - 1),
            Range(params, params + _PARAMS_SIZE - 1),
            Range(place.end + 1 - _MIB, place.end + 1 - _MIB + 0xFFFF),
        )
        kernel.write_memory(_KIMAGE, _kimage(kernel.entry, segments))
        kernel.write_memory(self._pointer, struct.pack("<Q", kernel.page_offset + _KIMAGE))

    def adopted(self) -> Service:
        """A service that has adopted an image of kdump's; what led there is forgotten."""
        self.load()
        service = self.host.service()
        service.start()
        self.host.settle(service)
        self.host.assert_complete()
        self.host.records.clear()
        self.host.kernel.calls.clear()
        return service

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Hold kdump's lock as ``kdump-config try-reload`` does."""
        with self.host.root.path(_LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def loads(host: FakeHost) -> list[tuple[str, ...]]:
    """Segments of each load that was ours."""
    return [call.names for call in host.kernel.calls]


def hint(host: FakeHost, service: Service, changed: Changed) -> None:
    """Files changed, and the daemon's loop passes that on."""
    host.hints.say(changed)
    service.files_changed()


def is_ours(host: FakeHost) -> bool:
    return host.audit().managed_by == "kdumphpd"


def _boot_params(address: int, command_line: str, initrd: int, size: int) -> bytes:
    """struct boot_params with a command line behind it, as kexec-tools leaves them."""
    params = bytearray(_PARAMS_SIZE)
    params[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", params, 0x218, initrd & 0xFFFFFFFF, size)
    struct.pack_into("<I", params, 0x228, (address + 0x1000) & 0xFFFFFFFF)
    struct.pack_into("<III", params, 0x0C0, initrd >> 32, 0, (address + 0x1000) >> 32)
    line = f"{command_line} elfcorehdr=1234K\0".encode()
    params[0x1000 : 0x1000 + len(line)] = line
    return bytes(params)


def _kimage(entry: int, segments: tuple[Range, ...]) -> bytes:
    """struct kimage: head, entry, last_entry, start, three pointers, the segments."""
    head = struct.pack("<8Q", 0, 0, 0, entry, 1, 2, 3, len(segments))
    packed = (struct.pack("<4Q", 0, one.size, one.start, one.size) for one in segments)
    return (head + b"".join(packed)).ljust(1024, b"\0")
