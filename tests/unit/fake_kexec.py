"""What ``kexec_load(2)`` refuses and which pages it takes: pure, sharing no code with kdumphpd.

Written from ``kernel/kexec.c``, ``kernel/kexec_core.c`` and
``arch/x86/kernel/machine_kexec_64.c``, as of Linux 6.1.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdumphpd.machine.ranges import Range

PAGE = 4096
GIB = 1 << 30
SEGMENT_MAX = 16
ON_CRASH = 0x1
PRESERVE_CONTEXT = 0x2
KNOWN_FLAGS = ON_CRASH | PRESERVE_CONTEXT
#: Since 6.10.
HOTPLUG_SUPPORT = 0x8
FILE_ON_CRASH = 0x2
ARCH_MASK = 0xFFFF0000
ARCH_X86_64 = 62 << 16
#: MAXMEM - 1 with 4-level paging.
_MEMORY_LIMIT = (1 << 46) - 1


@dataclass(frozen=True)
class Place:
    """``mem``, ``memsz`` and ``bufsz`` of a struct kexec_segment, under kdumphpd's name for it."""

    name: str
    mem: int
    memsz: int
    bufsz: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.mem + self.memsz


def early_errno(nr_segments: int, flags: int, known_flags: int = KNOWN_FLAGS) -> int:
    """kexec_load_check and the system call itself; nothing has happened yet."""
    if flags & ~ARCH_MASK & ~known_flags:
        return errno.EINVAL
    if nr_segments > SEGMENT_MAX:
        return errno.EINVAL
    if flags & ARCH_MASK not in (0, ARCH_X86_64):
        return errno.EINVAL
    return 0


def probe_errno(kernel: bytes) -> int:
    """bzImage64_probe (arch/x86/kernel/kexec-bzimage64.c), the only loader there is on x86.

    It looks for a setup header at a fixed place and not for a PE header: a unified kernel
    image is ENOEXEC. The cases that 5-level paging and 32-bit EFI add are left out.
    """
    if len(kernel) < 2 * 512 or kernel[0x202:0x206] != b"HdrS":
        return errno.ENOEXEC
    boot_flag, version, xloadflags = (
        int.from_bytes(kernel[at : at + 2], "little") for at in (0x1FE, 0x206, 0x236)
    )
    if boot_flag != 0xAA55 or version < 0x020C or not kernel[0x211] & 1:
        return errno.ENOEXEC
    return 0 if xloadflags & 3 == 3 else errno.ENOEXEC


def late_errno(
    entry: int, places: Sequence[Place], reservation: Range, total_ram_pages: int
) -> int:
    """kimage_alloc_init and sanity_check_segment_list; the old image is gone by now."""
    if not reservation.start <= entry <= reservation.end:
        return errno.EADDRNOTAVAIL
    if any(one.mem % PAGE or one.end % PAGE or one.end >= _MEMORY_LIMIT for one in places):
        return errno.EADDRNOTAVAIL
    if _overlap(places) or any(one.bufsz > one.memsz for one in places):
        return errno.EINVAL
    if sum(-(-one.memsz // PAGE) for one in places) > total_ram_pages // 2:
        return errno.EINVAL
    if any(one.mem < reservation.start or one.end - 1 > reservation.end for one in places):
        return errno.EADDRNOTAVAIL
    return 0


def _overlap(places: Sequence[Place]) -> bool:
    return any(
        one.end > other.mem and one.mem < other.end
        for number, one in enumerate(places)
        for other in places[:number]
    )


def control_pages(
    places: Sequence[Place], reservation: Range, page_tables: int
) -> list[int] | None:
    """Addresses of the pages that a load takes, in the order it takes them.

    Two pages of control code at a multiple of 8 KiB (the page tables' root is
    the first of them), the page tables, the vmcoreinfo copy; each from the
    lowest hole above the one before. None where the reservation is full (ENOMEM).
    """
    pages: list[int] = []
    position = reservation.start
    for size in [2 * PAGE] + [PAGE] * (page_tables + 1):
        start = _hole(places, reservation, position, size)
        if start is None:
            return None
        pages.extend(range(start, start + size, PAGE))
        position = start + size
    return pages


def _hole(places: Sequence[Place], reservation: Range, position: int, size: int) -> int | None:
    start = -(-position // size) * size
    while start + size - 1 <= reservation.end:
        hit = next((one for one in places if start < one.end and one.mem < start + size), None)
        if hit is None:
            return start
        start = -(-(hit.end - 1) // size) * size
    return None


def page_tables(mapped: Iterable[Range], gbpages: bool) -> int:
    """Pages of identity page tables below the root (``arch/x86/mm/ident_map.c``).

    For all of ``pfn_mapped`` (``machine_kexec_64.c``, init_pgtable).

    A PUD for each 512 GiB that is touched, and a PMD for each GiB of it, but with 1 GiB
    pages only for each GiB that no one range covers (commit cc31744a2945). The first
    MiB is always mapped whole (``arch/x86/mm/init.c``, init_mem_mapping).
    """
    touched: set[int] = set()
    whole: set[int] = set()
    for start, end in _spans([Range(0, 0xFFFFF), *mapped]):
        touched.update(range(start // GIB, (end - 1) // GIB + 1))
        whole.update(range(-(-start // GIB), end // GIB))
    return len(touched - whole if gbpages else touched) + len({gib // 512 for gib in touched})


def _spans(ranges: Iterable[Range]) -> list[tuple[int, int]]:
    """Half-open spans; those that touch are one."""
    spans: list[tuple[int, int]] = []
    for one in sorted(ranges):
        if spans and one.start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(one.end + 1, spans[-1][1]))
        else:
            spans.append((one.start, one.end + 1))
    return spans
