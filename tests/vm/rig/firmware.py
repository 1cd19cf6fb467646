"""UEFI firmware for a machine: OVMF as this host's package installs it."""

from __future__ import annotations

import enum
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RigError

DESCRIPTORS = Path("/usr/share/qemu/firmware")
"""Where packages describe their firmware (docs/interop/firmware.json of QEMU)."""

# Debian's build for tests: Secure Boot on, with a key whose private half is public
# (/usr/share/ovmf/PkKek-1-snakeoil.*). No descriptor names it.
_SNAKEOIL_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
_SNAKEOIL_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd")


class Firmware(enum.Enum):
    """What starts the machine."""

    SEABIOS = "seabios"
    OVMF = "ovmf"
    SECURE_BOOT = "ovmf-secure-boot"  # on, with the snakeoil keys


@dataclass(frozen=True)
class Flash:
    """Two pflash images: the code, and the template of the variables.

    ``smm`` keeps the variables from everyone but the firmware, which Secure Boot demands.
    """

    code: Path
    variables: Path
    smm: bool = False

    def qemu_arguments(self, variables: Path) -> list[str]:
        """Attach both; ``variables`` is the machine's own, writable copy."""
        shutil.copyfile(self.variables, variables)
        protected = ("-global", "driver=cfi.pflash01,property=secure,value=on")
        return [
            *(protected if self.smm else ()),
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self.code}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        ]


def find(firmware: Firmware, descriptors: Path = DESCRIPTORS) -> Flash | None:
    """Return the flash images of ``firmware``; None for what QEMU has built in.

    Raises:
        RigError: this host has no such firmware.
    """
    if firmware is Firmware.SEABIOS:
        return None
    if firmware is Firmware.SECURE_BOOT:
        flash = Flash(_SNAKEOIL_CODE, _SNAKEOIL_VARIABLES, smm=True)
        found = [flash] if flash.code.exists() and flash.variables.exists() else []
    else:
        texts = [path.read_text() for path in sorted(descriptors.glob("*.json"))]
        found = plain(json.loads(text) for text in texts)
    if not found:
        raise RigError(f"this host has no {firmware.value}: install the package ovmf (edk2-ovmf)")
    return found[0]


def plain(descriptors: Iterable[Any]) -> list[Flash]:
    """Flash images without Secure Boot for x86_64, best first, from parsed descriptors."""
    return [
        Flash(Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"]))
        for one in descriptors
        for mapping in (one["mapping"],)
        if "uefi" in one["interface-types"]
        and mapping["device"] == "flash"
        and {"executable", "nvram-template"} <= mapping.keys()
        and mapping["executable"]["format"] == mapping["nvram-template"]["format"] == "raw"
        and any(target["architecture"] == "x86_64" for target in one["targets"])
        and not {"secure-boot", "requires-smm", "amd-sev-snp", "intel-tdx"} & set(one["features"])
    ]
