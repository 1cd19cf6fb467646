"""The model of kexec_file_load's placement (kdumphpd.load.file_placement) against the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.rig import BOOKWORM, TRIXIE, Guest, Machine, Overlay, add_product, build_or_reuse

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1200)]

TREE = Path(__file__).parents[2]
#: Pages that the model may ask for beyond what this kernel takes: its purgatory has 5 of the
#: 16 that are counted, a list of measurements it does not place, the page that older kernels
#: leave at the end, and a few of page tables.
_SLACK = 24

# Shrinks the reservation page by page around the model's edge, and asks both.
_SHRINK = b"""\
import json, os
from dataclasses import replace
from pathlib import Path
from kdumphpd.config import DEFAULT_PATH
from kdumphpd.host import open_host
from kdumphpd.load import file_needs, file_placement
from kdumphpd.load.syscalls import KEXEC_FILE_ON_CRASH, LiveKernel
from kdumphpd.machine import reservation
from kdumphpd.machine.files import Root
from kdumphpd.machine.snapshot import total_ram

PAGE, STEPS = 4096, 40
SIZE = Path("/sys/kernel/kexec_crash_size")
root, kernel = Root(), LiveKernel()
host = open_host(root, kernel, DEFAULT_PATH)
line = host.source.spec.command_line.encode()
bzimage, initrd = host.source.files()


def fits(pages=0):
    resources = host.reader.resources()
    parsed, machine = host.source.kernel(host.reader), host.reader.snapshot()
    needs = file_needs.read(root, host.reader, machine, parsed, initrd.size(), line)
    place = reservation.find(root, resources).main
    if pages:
        place = replace(place, end=place.start + pages * PAGE - 1)
    return file_placement.misfit(place, needs, total_ram(root)) is None


def loads():
    try:
        kernel.kexec_file_load(bzimage.fd, initrd.fd, line, KEXEC_FILE_ON_CRASH)
    except OSError as error:
        return error.errno
    os.system("kexec -p -u")
    return 0


os.system("kexec -p -u")
low, high = 1, int(SIZE.read_text()) // PAGE
while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if fits(middle) else (middle + 1, high)
found = []
for pages in range(low + 2, low - STEPS, -1):
    SIZE.write_text(str(pages * PAGE))
    found.append((pages, fits(), loads()))
    if found[-1][2] and len([one for one in found if one[2]]) >= 3:
        break
print(json.dumps(found))
"""


@pytest.mark.parametrize("guest", [BOOKWORM, TRIXIE], ids=lambda guest: guest.name)
def test_what_fits_by_the_model_is_loaded_and_little_else(
    guest: Guest, wheel: Path, tmp_path: Path
) -> None:
    overlay = Overlay(tmp_path / "overlay")
    add_product(overlay, guest, wheel, TREE / "systemd")
    with Machine(build_or_reuse(guest, TREE / "build/vm"), tmp_path / "vm", overlay) as vm:
        code, stdout, stderr = vm.guest.try_run("python3 -", timeout=600, stdin=_SHRINK)
    assert code == 0, stderr
    found = json.loads(stdout.splitlines()[-1])
    fitting = [pages for pages, fits, _ in found if fits]
    loaded = [pages for pages, _, errno in found if not errno]
    refused = [pages for pages, _, errno in found if errno]
    assert fitting, found
    assert set(fitting) <= set(loaded), found
    assert len(refused) == 3, found
    assert max(refused) < min(loaded), found
    assert min(fitting) - min(loaded) <= _SLACK, found
