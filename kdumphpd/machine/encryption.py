"""Whether the running kernel encrypts its memory (AMD SME, SEV).

On such a host a crash segment is written through a mapping without the C-bit and the
direct map, by which ``/proc/kcore`` reads, gets it back afterwards (kernel/kexec_core.c,
kimage_load_crash_segment; arch/x86/kernel/machine_kexec_64.c,
arch_kexec_post_alloc_pages): what is loaded reads back as noise. In a SEV guest it may
read back well, but nobody has seen such a guest's image boot.

CPU flags say what the hardware could do, and the command line what was asked for. What
is active the kernel says in vmcoreinfo, as ``sme_mask`` (arch/x86/kernel/vmcore_info_64.c,
arch_crash_save_vmcoreinfo; since 5.1, commit 65f750e5457a). A TDX guest has no such mask:
its own memory is in the clear to it.
"""

from __future__ import annotations

import re

from kdumphpd.header.elfcorehdr import Note
from kdumphpd.machine.kcore import PhysicalMemory

# VMCOREINFO_NUMBER: a signed long; the mask's bit is 47 or 51, so it is never negative.
_SME_MASK = re.compile(rb"^NUMBER\(sme_mask\)=([0-9]{1,19})$", re.MULTILINE)


def active(memory: PhysicalMemory, vmcoreinfo: Note) -> str:
    """Why what is loaded cannot be read back; empty if memory is not encrypted.

    Args:
        memory: of the host.
        vmcoreinfo: where its note lies.

    Raises:
        MachineError: the note cannot be read.
    """
    found = _SME_MASK.search(memory.read(vmcoreinfo.address, vmcoreinfo.size))
    mask = int(found[1]) if found else 0
    if not mask:
        return ""
    return (
        f"the kernel encrypts memory (AMD SME or SEV, mask {mask:#x}): what is loaded is not read"
    )
