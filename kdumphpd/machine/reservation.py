"""The crash kernel's reservation and whether something is loaded in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kdumphpd.errors import KdumphpdError, MachineError
from kdumphpd.machine import iomem
from kdumphpd.machine.files import Root
from kdumphpd.machine.iomem import Resource
from kdumphpd.machine.numbers import parse_u64
from kdumphpd.machine.ranges import Range

# Newer kernels keep these in /sys/kernel/kexec.
_LOADED = ("/sys/kernel/kexec/crash_loaded", "/sys/kernel/kexec_crash_loaded")
_SIZE = ("/sys/kernel/kexec/crash_size", "/sys/kernel/kexec_crash_size")
_HEADER_SIZE = ("/sys/kernel/kexec/crash_elfcorehdr_size", "/sys/kernel/crash_elfcorehdr_size")
#: Longer than an update of the header or a delta load takes.
_CONTENTION_SECONDS = 0.01
_TRIES = 4
_HOTPLUG = tuple(f"/sys/devices/system/{kind}/crash_hotplug" for kind in ("memory", "cpu"))


@dataclass(frozen=True)
class Reservation:
    """``crashk_res`` (where images are loaded), and all reserved ranges with the low one."""

    main: Range
    ranges: tuple[Range, ...]


def crash_loaded(root: Root) -> bool:
    """Whether the kernel holds a crash image, whoever loaded it.

    A kernel that updates headers itself holds none while it writes one
    (arch/x86/kernel/crash.c, arch_crash_handle_hotplug_event: kexec_crash_image is NULL
    meanwhile): there a 0 is asked about again.
    """
    loaded = _number(root, _LOADED) == 1
    if loaded or not can_be_updated(root):
        return loaded
    return bool(ask_again(root, lambda: _number(root, _LOADED) == 1))


def can_load(root: Root) -> bool:
    """Whether this kernel knows crash images at all (CONFIG_KEXEC_CORE, kernel/ksysfs.c)."""
    return root.first_existing(*_LOADED) is not None


def size(root: Root) -> int | None:
    """Bytes of ``crashk_res``; 0 if nothing is reserved, None if the kernel does not say."""
    return _number(root, _SIZE)


def elfcorehdr_size(root: Root) -> int:
    """The header size that the kernel wants room for; 0 if it does not update headers."""
    return _number(root, _HEADER_SIZE) or 0


def can_be_updated(root: Root) -> bool:
    """Whether this kernel can keep an image's header itself (CONFIG_CRASH_HOTPLUG)."""
    return root.first_existing(*_HOTPLUG) is not None


def kernel_updates(root: Root) -> bool:
    """Whether the kernel itself keeps the loaded image's header (``crash_hotplug``).

    The file reads 0 while anybody holds the kexec lock (kernel/crash_core.c,
    crash_check_hotplug_support), a reader included: so a 0 is asked about again, and a 1
    no more often than is needed.
    """
    name = root.first_existing(*_HOTPLUG)
    return name is not None and bool(ask_again(root, lambda: root.read_text(name) == "1"))


def kept_by_kernel(root: Root) -> bool:
    """Whether an image is loaded that the kernel itself keeps current, as far as it says."""
    try:
        return crash_loaded(root) and kernel_updates(root)
    except KdumphpdError:
        return False


def ask_again(root: Root, ask: Callable[[], int]) -> int:
    """What ``ask`` answers; 0 only if that lasts longer than an update or a delta load."""
    for _ in range(_TRIES - 1):
        answer = ask()
        if answer:
            return answer
        root.pause(_CONTENTION_SECONDS)
    return ask()


def find(root: Root, resources: Iterable[Resource]) -> Reservation:
    """The reservation that crash images go to.

    With a low and a high reservation both are named "Crash kernel" in iomem;
    the size in sysfs is that of ``crashk_res`` alone.

    Raises:
        MachineError: nothing is reserved, or iomem and sysfs do not agree.
    """
    ranges = iomem.crash_kernel(resources)
    size = _number(root, _SIZE)
    if not ranges or size == 0:
        raise MachineError(
            "no memory is reserved for a crash kernel",
            "add crashkernel=256M to the kernel command line and reboot",
        )
    if size is None:
        return Reservation(ranges[-1], ranges)
    for one in reversed(ranges):
        if one.size == size:
            return Reservation(one, ranges)
    shown = ", ".join(map(str, ranges))
    raise MachineError(
        f"/proc/iomem shows the crash kernel at {shown}, sysfs a size of {size} bytes",
        "the reservation changed just now? Try again",
    )


def _number(root: Root, names: tuple[str, ...]) -> int | None:
    name = root.first_existing(*names)
    if name is None:
        return None
    text = root.read_text(name)
    number = parse_u64(text)
    if number is None:
        raise MachineError(f"{name}: {text[:40]!r} is not a number")
    return number
