from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kdumphpd.audit.compare import Verdict, compare
from kdumphpd.errors import MachineError, PermissionMissingError
from kdumphpd.header import elfcorehdr
from kdumphpd.header.elfcorehdr import Note
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.load.segments import Segment
from kdumphpd.load.syscalls import KEXEC_ARCH_X86_64, KEXEC_ON_CRASH
from kdumphpd.machine.files import Root
from kdumphpd.machine.kcore import PhysicalMemory
from kdumphpd.machine.ranges import Range, merge
from kdumphpd.machine.snapshot import MachineReader, parse_vmcoreinfo
from tests.unit.fake_kernel import FakeKernel

GIB = 1 << 30
_TREE = Path(__file__).parent / "trees" / "qemu-q35-6.1"
_DIMMS = [Range((4 + n) * GIB, (5 + n) * GIB - 1) for n in range(6)]


def test_the_first_look(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, memory=4 * GIB, cpus=(0, 2), possible=4)
    machine = MachineReader(kernel.root).snapshot()
    assert machine.ram == (
        Range(0x100000, kernel.reservation.start - 1),
        Range(kernel.reservation.end + 1, 0x7FFDEFFF),
        Range(4 * GIB, 6 * GIB - 1),
    )
    assert machine.all_ram[0] == Range(0x1000, 0x9FBFF)
    assert machine.cpus == tuple((n, Note(kernel.crash_notes(n), 368)) for n in (0, 2))
    assert machine.cpu_numbers == {0, 2}
    assert machine.fixed.vmcoreinfo == Note(kernel.vmcoreinfo, 0x1024)
    assert machine.fixed.possible_cpus == 4
    assert machine.fixed.memory_block_size == 128 << 20
    assert machine.fixed.addresses.page_offset == kernel.page_offset


def test_a_cpu_whose_directory_comes_later(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path)
    reader = MachineReader(kernel.root)
    kernel.hot_add_cpu(3, registered=False)
    assert reader.snapshot().missing_notes == (3,)
    kernel.register_cpu(3)
    machine = reader.snapshot()
    assert not machine.missing_notes
    assert machine.cpu_numbers == {0, 3}


def test_known_cpus_are_not_read_again(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, cpus=(0, 1))
    reader = MachineReader(kernel.root)
    before = reader.snapshot()
    for cpu in (0, 1):
        shutil.rmtree(tmp_path / f"sys/devices/system/cpu/cpu{cpu}")
    (tmp_path / "proc/kcore").unlink()
    assert reader.snapshot() == before


def test_a_cpu_that_left_is_known_still(tmp_path: Path) -> None:
    kernel = FakeKernel.q35(tmp_path, cpus=(0, 1))
    reader = MachineReader(kernel.root)
    reader.snapshot()
    kernel.hot_remove_cpu(1)
    assert reader.snapshot().cpu_numbers == {0}
    assert reader.known_notes()[Note(kernel.crash_notes(1), 368)] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sys/kernel/vmcoreinfo", "here"),
        ("sys/kernel/vmcoreinfo", "0x1000"),
        ("sys/devices/system/memory/block_size_bytes", "large"),
        ("sys/devices/system/cpu/present", "all"),
        ("proc/kcore", "not ELF"),
        ("proc/iomem", "nothing"),
    ],
)
def test_a_file_with_other_content_is_named(tmp_path: Path, name: str, content: str) -> None:
    kernel = FakeKernel.q35(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(MachineError) as caught:
        MachineReader(kernel.root).snapshot()
    assert name.rsplit("/", 1)[-1] in str(caught.value) or content in str(caught.value)


@given(st.one_of(st.text(), st.lists(st.text("0123456789abcdefx", min_size=1)).map(" ".join)))
def test_any_vmcoreinfo_is_parsed_or_refused(text: str) -> None:
    plain = re.fullmatch("(0x)?[0-9a-f]{1,16} (0x)?[0-9a-f]{1,16}", text)
    try:
        note = parse_vmcoreinfo(text)
    except MachineError:
        assert not plain
    else:
        assert note == Note(*(int(part, 16) for part in text.split()))
        assert max(note.address, note.size) < 1 << 64


def test_the_recorded_tree() -> None:
    machine = MachineReader(Root(_TREE)).snapshot()
    assert machine.ram == (Range(0x100000, 0x6EFFFFFF), Range(0x7F000000, 0x7FFDCFFF))
    assert machine.cpus == ((0, Note(0x7F23A400, 368)),)
    assert machine.fixed.vmcoreinfo == Note(0x61FA4000, 0x1024)
    assert machine.fixed.possible_cpus == 4
    addresses = machine.fixed.addresses
    # As `readelf -lW` shows kcore: KASLR, and 5-level paging.
    assert addresses.page_offset == 0xFF260D0BC0000000
    assert addresses.five_level
    assert (addresses.text.paddr, addresses.text.vaddr) == (0x5EA00000, 0xFFFFFFFF93200000)
    header = elfcorehdr.parse(machine.header())
    assert header is not None
    assert compare(header, machine, {}).verdict is Verdict.COMPLETE


def test_the_recorded_tree_without_privileges(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(_TREE, tree)
    lines = (tree / "proc/iomem").read_text().splitlines()
    hidden = [
        f"{line.split('0', 1)[0]}00000000-00000000 : {line.split(' : ')[1]}"
        for line in lines
        if line.strip()
    ]
    (tree / "proc/iomem").write_text("\n".join(hidden) + "\n")
    with pytest.raises(PermissionMissingError):
        MachineReader(Root(tree)).snapshot()


class Hotplug(RuleBasedStateMachine):
    """A machine that changes under a reader, and a header that is loaded now and then."""

    @initialize()
    def boot(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="hotplug")
        self.kernel = FakeKernel.q35(Path(self.directory.name), possible=6)
        self.reader = MachineReader(self.kernel.root)
        self.dimms: set[Range] = set()
        self.in_header: tuple[set[Range], set[int]] | None = None
        start = self.kernel.reservation.start + (8 << 20)
        self.place = Range(start, start + (1 << 20) - 1)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.directory.cleanup()

    @rule(dimm=st.sampled_from(_DIMMS))
    def plug_or_unplug_memory(self, dimm: Range) -> None:
        if dimm in self.dimms:
            self.kernel.hot_remove_memory(dimm)
        else:
            self.kernel.hot_add_memory(dimm)
        self.dimms ^= {dimm}

    @rule(cpu=st.integers(1, 5))
    def plug_or_unplug_cpu(self, cpu: int) -> None:
        if cpu in self.kernel.cpus:
            self.kernel.hot_remove_cpu(cpu)
        else:
            self.kernel.hot_add_cpu(cpu)

    @rule()
    def load(self) -> None:
        content = LockedBuffer.of(self.reader.snapshot().header())
        segment = Segment("elfcorehdr", content, self.place)
        self.kernel.kexec_load(self.place.end, [segment], KEXEC_ON_CRASH | KEXEC_ARCH_X86_64)
        self.in_header = (set(self.dimms), set(self.kernel.cpus))

    @precondition(lambda self: self.in_header is not None)
    @rule()
    def unload(self) -> None:
        self.kernel.unload()
        assert self.kernel.crash(self.place.start) is None
        self.in_header = None

    @precondition(lambda self: self.in_header is not None)
    @invariant()
    def the_crash_kernel_reads_what_was_loaded(self) -> None:
        assert self.in_header is not None
        found = self.kernel.crash(self.place.start)
        assert found is not None
        dimms, cpus = self.in_header
        high = [Range(p, p + size - 1) for p, _, size in found.loads if p >= 4 * GIB]
        assert merge(high) == merge(dimms)
        assert set(found.notes[:-1]) == {self.kernel.crash_notes(cpu) for cpu in cpus}

    @precondition(lambda self: self.in_header is not None)
    @invariant()
    def the_comparison_says_exactly_what_changed(self) -> None:
        assert self.in_header is not None
        machine = self.reader.snapshot()
        with PhysicalMemory(self.kernel.root) as memory:
            header = elfcorehdr.parse(memory.read(self.place.start, self.place.size))
        assert header is not None
        found = compare(header, machine, self.reader.known_notes())
        dimms, cpus = self.in_header
        assert found.missing.memory == merge(self.dimms - dimms)
        assert found.extra.memory == merge(dimms - self.dimms)
        assert set(found.missing.cpus) == set(self.kernel.cpus) - cpus
        assert set(found.extra.cpus) == cpus - set(self.kernel.cpus)
        same = self.dimms == dimms and set(self.kernel.cpus) <= cpus
        assert (found.verdict is Verdict.COMPLETE) == same


TestHotplug = Hotplug.TestCase
TestHotplug.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
