"""What the kernel maps one to one for a crash image: ``pfn_mapped``, which only grows.

``init_pgtable`` (arch/x86/kernel/machine_kexec_64.c) makes page tables for all that the
direct map ever had: each ``init_memory_mapping`` adds to the list (arch/x86/mm/init.c,
add_pfn_range_mapped) and nothing takes away. So it has memory that was removed, and what
``memremap_pages`` mapped: persistent memory, a device's memory for peer-to-peer DMA.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from kdumphpd.errors import MachineError
from kdumphpd.machine import symbols
from kdumphpd.machine.iomem import Resource
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range, merge

#: int nr_pfn_mapped; struct range { u64 start, end; } pfn_mapped[], in pages, end excluded.
SYMBOLS = ("nr_pfn_mapped", "pfn_mapped")
_COUNT = struct.Struct("<i")
_RANGE = struct.Struct("<QQ")
#: E820_MAX_ENTRIES is 128 and three for each NUMA node, of which there are 1024 at most.
_MAX_RANGES = 128 + 3 * 1024
_PAGE_SHIFT = 12
_MAX_PFN = 1 << 52 - _PAGE_SHIFT
_TRIES = 3

#: Beginnings of the names of what may be mapped without being System RAM: drivers/nvdimm,
#: drivers/dax, drivers/cxl and the firmware's "specific purpose" memory.
_DEVICE_MEMORY = ("Persistent Memory", "Soft Reserved", "CXL Window", "namespace", "dax")


def of_kernel(memory: PhysicalMemory, addresses: Mapping[str, int]) -> tuple[Range, ...]:
    """The kernel's own list; nothing where it cannot be read or makes no sense.

    Args:
        memory: of the host.
        addresses: of `SYMBOLS`, as kallsyms has them.
    """
    if not all(addresses.get(name) for name in SYMBOLS):
        return ()
    try:
        # Memory that is being added is sorted into the list in several steps.
        last = _read(memory, addresses)
        for _ in range(_TRIES):
            before, last = last, _read(memory, addresses)
            if before == last:
                return _ranges(last, memory.address_map().text.paddr)
    except MachineError:
        pass
    return ()


def _read(memory: PhysicalMemory, addresses: Mapping[str, int]) -> bytes:
    count, ranges = (addresses[name] for name in SYMBOLS)
    (number,) = _COUNT.unpack(symbols.read(memory, count, _COUNT.size))
    if not 1 <= number <= _MAX_RANGES:
        raise MachineError(f"nr_pfn_mapped is {number}")
    return symbols.read(memory, ranges, number * _RANGE.size)


def _ranges(data: bytes, text: int) -> tuple[Range, ...]:
    """The ranges in ``data``, which must be in order and reach the kernel's text."""
    position = 0
    found = []
    for start, end in _RANGE.iter_unpack(data):
        if not position <= start < end <= _MAX_PFN:
            return ()
        position = end
        found.append(Range(start << _PAGE_SHIFT, (end << _PAGE_SHIFT) - 1))
    return merge(found) if any(one.start <= text <= one.end for one in found) else ()


def of_iomem(resources: Iterable[Resource]) -> tuple[Range, ...]:
    """What the kernel may have mapped beside System RAM, as far as ``/proc/iomem`` tells."""
    return merge(one.range for one in resources if one.name.startswith(_DEVICE_MEMORY))
