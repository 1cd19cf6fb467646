"""Plans: for any machine either a clear refusal or an image that the kernel takes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from kdumphpd import cli
from kdumphpd.errors import ImageError, KdumphpdError
from kdumphpd.image.plan import complete_command_line, serial_port
from kdumphpd.machine.ranges import Range
from tests.unit.fake_kernel import MIB, FakeKernel
from tests.unit.host_fixture import GIB, INITRD, KERNEL, PAGE, FakeHost, bzimage
from tests.unit.synthetic import SyntheticBzImage


@st.composite
def reservations(draw: st.DrawFn, ram: Range) -> Range:
    """A reservation in ``ram``, at a multiple of a MiB as the kernel makes them."""
    size = draw(st.integers(1, 320)) * MIB
    first, last = -(-ram.start // MIB), (ram.end + 1 - size) // MIB
    assume(first <= last)
    start = draw(st.integers(first, last)) * MIB
    return Range(start, start + size - 1)


@st.composite
def kernels(draw: st.DrawFn, directory: Path) -> FakeKernel:
    low_end = draw(st.integers(64, 3072)) * MIB - draw(st.sampled_from([0, 0x21000, 0x800]))
    ram = [Range(0x1000, 0x9FBFF), Range(MIB, low_end - 1)]
    low = None
    if draw(st.booleans()):
        size = draw(st.integers(1, 4096)) * 64 * MIB
        ram.append(Range(4 * GIB, 4 * GIB + size - 1))
        if draw(st.booleans()):
            low = draw(reservations(ram[1]))
    main = draw(reservations(ram[-1]))
    assume(low is None or not low.overlaps(main))
    possible = draw(st.sampled_from([1, 8, 512]))
    try:
        return FakeKernel(
            directory,
            ram,
            main,
            low,
            cpus=range(draw(st.integers(1, min(possible, 4)))),
            possible=possible,
            gbpages=draw(st.booleans()),
        )
    except ValueError:  # no room for the running kernel's text
        return assume(False)  # type: ignore[return-value]


@st.composite
def images(draw: st.DrawFn) -> SyntheticBzImage:
    return SyntheticBzImage(
        kernel_alignment=draw(st.sampled_from([0x1000, 0x200000, 0x1000000])),
        pref_address=draw(st.sampled_from([0x100000, 0x1000000, 0x40000000])),
        init_size=draw(st.integers(0x10000, 200 * MIB)),
        trailing=draw(st.binary(max_size=64)),
    )


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(st.data())
def test_whatever_the_machine_it_is_refused_clearly_or_taken(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(prefix="kdumphpd-plan-") as name:
        host = FakeHost(Path(name), kernel=data.draw(kernels(Path(name))))
        host.write(KERNEL, bzimage(data.draw(images())))
        host.write(INITRD, b"i" * data.draw(st.integers(1, 300_000)))
        host.configure(command_line="x" * data.draw(st.integers(0, 1900)))
        parts = host.open()
        machine = parts.reader.snapshot()
        refusal, loaded = None, None
        try:
            loaded = parts.loader.full(machine)
        except KdumphpdError as error:
            refusal = error
        event(f"refused: {type(refusal).__name__}" if refusal else "taken")
        if loaded is None:
            assert refusal is not None
            assert refusal.remedy
            assert not host.kernel.calls, "the kernel was not even asked"
            return
        host.assert_complete()
        # The same layout is planned again for the image that is loaded.
        again = parts.loader.plan(machine, keep=loaded.block)
        assert again.layout.elfcorehdr == loaded.block.elfcorehdr
        assert parts.keeper.matches(parts.keeper.look())


def test_the_layout_is_in_order_and_inside_the_reservation(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    parts = host.open()
    layout = parts.loader.plan(parts.reader.snapshot()).layout
    places = [place for _, place in layout.parts()]
    assert places[0].start == host.kernel.reservation.start
    assert places[-1].end == host.kernel.reservation.end
    assert all(low.end < high.start for low, high in zip(places, places[1:]))
    assert all(place.start % PAGE == 0 == (place.end + 1) % PAGE for place in places)


def test_text_fits_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = FakeHost(tmp_path)
    host.configure(command_line=" ".join(f"option{number}=value" for number in range(60)))
    assert cli.main(["plan"], host.root, host.kernel) == 0
    shown = capsys.readouterr().out
    unbreakable = [str(host.root.path(KERNEL)), str(host.root.path(INITRD)), "kdumphpd.toml"]
    for line in shown.splitlines():
        assert len(line) < 80 or any(word in line for word in unbreakable)
    for word in ("control pad", "GiB of RAM", "elfcorehdr", "e820", "RAM", "option59=value"):
        assert word in shown


def test_json_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = FakeHost(tmp_path)
    assert cli.main(["plan", "--json"], host.root, host.kernel) == 0
    plan = json.loads(capsys.readouterr().out)
    reservation = host.kernel.reservation
    assert plan["reservation"] == [reservation.start, reservation.end]
    assert plan["cpus"] == [0, 1]
    assert plan["memory"] == [[one.start, one.end] for one in host.machine_ram()]
    segments = {one["name"]: one for one in plan["segments"]}
    assert sorted(segments) == ["boot_params", "elfcorehdr", "initrd", "kernel", "purgatory"]
    # The purgatory's code is, its stack and parameter block are not.
    assert not segments["elfcorehdr"]["in_digest"]
    assert segments["kernel"]["in_digest"]
    assert plan["entry"] == segments["purgatory"]["address"]
    assert plan["control_pad"]["capacity_gib"] >= 1024
    assert plan["control_pad"]["pages"] >= plan["control_pad"]["pages_needed"]
    assert plan["reserve"]["used"] < plan["reserve"]["size"] == segments["elfcorehdr"]["size"]
    assert f"elfcorehdr={plan['reserve']['address'] >> 10}K" in plan["command_line"].split()
    assert any(one["type"] == 1 for one in plan["e820"])
    # What it says is what load does.
    host.load()
    (call,) = host.kernel.calls
    assert call.entry == plan["entry"]
    for place in call.places:
        assert place.mem == segments[place.name]["address"]


def test_a_recorded_tree_needs_no_privileges(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.kernel.permitted = False
    assert cli.main(["plan", "--root", str(tmp_path)], kernel=host.kernel) == 0
    assert not host.kernel.calls


@pytest.mark.parametrize(
    ("configured", "complete"),
    [
        ("", "acpi_no_memhotplug elfcorehdr=16K"),
        ("a  b ", "a  b acpi_no_memhotplug elfcorehdr=16K"),
        ("acpi_no_memhotplug a", "acpi_no_memhotplug a elfcorehdr=16K"),
        ("xacpi_no_memhotplug", "xacpi_no_memhotplug acpi_no_memhotplug elfcorehdr=16K"),
        ("myelfcorehdr=1", "myelfcorehdr=1 acpi_no_memhotplug elfcorehdr=16K"),
    ],
)
def test_the_command_line_is_completed(configured: str, complete: str) -> None:
    assert complete_command_line(configured, 16384) == complete


@pytest.mark.parametrize("configured", ["elfcorehdr=1M", "a elfcorehdr=1 b", "a\telfcorehdr=1"])
def test_a_command_line_may_not_name_the_header_itself(configured: str) -> None:
    with pytest.raises(ImageError, match="elfcorehdr="):
        complete_command_line(configured, 16384)


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("", 0),
        ("console=tty0", 0),
        ("console=ttyS0", 0x3F8),
        ("console=ttyS1,115200n8 quiet", 0x2F8),
        ("console=ttyS0 console=ttyS3", 0x2E8),
        ("console=ttyS9", 0),
        ("myconsole=ttyS0", 0),
        ("console=ttyS10", 0),
    ],
)
def test_the_serial_port_is_the_last_console(line: str, port: int) -> None:
    assert serial_port(line) == port
