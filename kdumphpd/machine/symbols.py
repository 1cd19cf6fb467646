"""The kernel's own variables: their addresses in ``/proc/kallsyms``, read through ``/proc/kcore``.

For what no file of the kernel shows. Variables are listed with CONFIG_KALLSYMS_ALL only
(all distributions have it); without CAP_SYSLOG, or with kptr_restrict, each shows 0.
"""

from __future__ import annotations

from collections.abc import Collection

from kdumphpd.errors import MachineError
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory

_KALLSYMS = "/proc/kallsyms"


def addresses(root: Root, names: Collection[str]) -> dict[str, int]:
    """Virtual addresses of those of ``names`` that the kernel has; 0 where it hides them."""
    wanted = {f" {name}": name for name in names}
    endings = tuple(wanted)
    found: dict[str, int] = {}
    try:
        with root.path(_KALLSYMS).open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                # "address type name", modules' with "[module]" behind.
                text = line.rstrip()
                if text.endswith(endings):
                    address, _, name = text.split()
                    found.setdefault(name, int(address, 16))
                    if len(found) == len(wanted):
                        break
    except (OSError, ValueError):
        return {}
    return found


def read(memory: PhysicalMemory, address: int, size: int) -> bytes:
    """``size`` bytes of a variable of the kernel image at virtual ``address``.

    Raises:
        MachineError: it does not lie in the kernel image, or cannot be read.
    """
    text = memory.address_map().text
    if not text.vaddr <= address <= text.vaddr + text.size - size:
        raise MachineError(f"{address:#x} does not lie in the kernel image")
    return memory.read(address - text.vaddr + text.paddr, size)
