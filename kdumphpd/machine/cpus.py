"""CPUs and their crash_notes under ``/sys/devices/system/cpu``."""

from __future__ import annotations

from kdumphpd.errors import InputError, MachineError
from kdumphpd.header.elfcorehdr import Note
from kdumphpd.machine.files import Root
from kdumphpd.machine.numbers import parse_u64

_CPUS = "/sys/devices/system/cpu"
#: NR_CPUS is at most 8192 on x86_64; a longer list is not a CPU list.
_MAX_CPUS = 1 << 16


def parse_list(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as ``0-3,8`` (``lib/bitmap.c``, %*pbl), sorted.

    Raises:
        MachineError: it is no such list.
    """
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        low, high = parse_u64(first), parse_u64(last or first)
        if low is None or high is None or not low <= high < _MAX_CPUS:
            raise MachineError(f"{text[:60]!r} is not a list of CPUs")
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def present(root: Root) -> tuple[int, ...]:
    """CPUs that are plugged in, online or not."""
    return parse_list(root.read_text(f"{_CPUS}/present"))


def possible_count(root: Root) -> int:
    """How many CPUs can ever be present."""
    return len(parse_list(root.read_text(f"{_CPUS}/possible")))


def read_note(root: Root, cpu: int) -> Note | None:
    """The crash_notes buffer of ``cpu``; None while the kernel has not made its directory.

    ``drivers/base/cpu.c``: the address in hexadecimal, the size in decimal. A
    CPU becomes present just before its device, and goes just after it.
    """
    directory = f"{_CPUS}/cpu{cpu}"
    try:
        address = root.read_text(f"{directory}/crash_notes")
        size = root.read_text(f"{directory}/crash_notes_size")
    except InputError:
        return None
    return Note(_number(directory, address, 16), _number(directory, size, 10))


def _number(directory: str, text: str, base: int) -> int:
    number = parse_u64(text, base)
    if number is None:
        raise MachineError(f"{directory}/crash_notes: {text[:40]!r} is not a number of 64 bits")
    return number
