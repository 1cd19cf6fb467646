"""A virtual machine rig that tests, the demo and the benchmark share."""

from __future__ import annotations

from .errors import CommandFailedError, RigError
from .firmware import Firmware
from .gdbstub import PhysicalMemory
from .guest_image import GuestImage, build_or_reuse
from .guests import (
    BOOKWORM,
    BULLSEYE,
    FLEET,
    GUESTS,
    KDUMP_UTILS,
    KDUMP_UTILS_TRIXIE,
    SID,
    TRIXIE,
    Guest,
)
from .journal import Journal
from .kdump import add_kdump, add_real_kdump, kernel_release, marked
from .machine import Capture, Dimm, Machine
from .options import CAPTURE_COMMAND_LINE, GIB, MIB, MachineOptions
from .oracles import (
    cpu_notes_in_vmcore,
    expected_ram,
    find_pattern,
    ram_in_header,
    ram_in_vmcore,
)
from .overlay import Overlay
from .pattern import Pattern, hold_pattern
from .product import add_product, add_rpm, build_rpm, build_wheel, needs_python

__all__ = [
    "BOOKWORM",
    "BULLSEYE",
    "CAPTURE_COMMAND_LINE",
    "FLEET",
    "GIB",
    "GUESTS",
    "KDUMP_UTILS",
    "KDUMP_UTILS_TRIXIE",
    "MIB",
    "SID",
    "TRIXIE",
    "Capture",
    "CommandFailedError",
    "Dimm",
    "Firmware",
    "Guest",
    "GuestImage",
    "Journal",
    "Machine",
    "MachineOptions",
    "Overlay",
    "Pattern",
    "PhysicalMemory",
    "RigError",
    "add_kdump",
    "add_product",
    "add_real_kdump",
    "add_rpm",
    "build_or_reuse",
    "build_rpm",
    "build_wheel",
    "cpu_notes_in_vmcore",
    "expected_ram",
    "find_pattern",
    "hold_pattern",
    "kernel_release",
    "marked",
    "needs_python",
    "ram_in_header",
    "ram_in_vmcore",
]
