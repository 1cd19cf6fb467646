"""The image's files: opened once, kept open, known by their digest."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from kdumphpd.errors import ImageError, InputError
from kdumphpd.image.files import ImageFile
from kdumphpd.image.source import ImageSource
from kdumphpd.load.buffers import LockedBuffer
from tests.unit.host_fixture import INITRD, KERNEL, FakeHost, bzimage
from tests.unit.synthetic import SyntheticBzImage


def content(buffer: LockedBuffer) -> bytes:
    with buffer, buffer.view() as view:
        return bytes(view)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "initrd"
    path.write_bytes(b"the first one")
    return path


def test_a_file_that_was_replaced_is_read_as_it_was(path: Path) -> None:
    file = ImageFile.open("initrd", path)
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"another one")
    fresh.replace(path)
    assert content(file.read()) == b"the first one"
    path.unlink()
    assert content(file.read()) == b"the first one"
    file.close()


def test_a_file_that_was_overwritten_in_place_is_opened_anew(path: Path) -> None:
    file = ImageFile.open("initrd", path)
    assert content(file.read()) == b"the first one"
    path.write_bytes(b"overwritten")
    assert content(file.read()) == b"overwritten"
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"and replaced")
    fresh.replace(path)
    assert content(file.read()) == b"overwritten"
    file.close()


def test_overwritten_and_gone_is_an_error(path: Path) -> None:
    file = ImageFile.open("initrd", path)
    file.read().close()
    path.write_bytes(b"overwritten")
    path.unlink()
    with pytest.raises(InputError, match=r"initrd .*No such file"):
        file.read()
    file.close()


def test_emptied_is_an_error(path: Path) -> None:
    file = ImageFile.open("initrd", path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="is empty; rebuild it"):
        file.read()
    file.close()


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_the_image_holds_the_protected_mode_part_and_the_initrd(host: FakeHost) -> None:
    image = SyntheticBzImage(trailing=b"a signature")
    host.write(KERNEL, bzimage(image))
    host.load()
    kernel, initrd, _, _ = host.static_bytes()
    setup = (image.setup_sects + 1) * 512
    assert kernel == bzimage(image)[setup : setup + image.syssize * 16]
    assert initrd == host.root.path(INITRD).read_bytes()


def test_a_file_that_grew_after_the_plan_is_not_loaded(host: FakeHost) -> None:
    parts = host.open()
    machine = parts.reader.snapshot()
    planned = parts.loader.plan(machine)
    with host.root.path(INITRD).open("ab") as initrd:
        initrd.write(b"more")
    with pytest.raises(ImageError, match="changed while it was read"):
        parts.source.image(planned, bytes(16))


def test_a_kernel_that_shrank_after_the_plan_is_not_loaded(host: FakeHost) -> None:
    parts = host.open()
    planned = parts.loader.plan(parts.reader.snapshot())
    with host.root.path(KERNEL).open("r+b") as kernel:
        kernel.truncate(30_000)
    with pytest.raises(ImageError, match="changed while it was read"):
        parts.source.image(planned, bytes(16))


def test_closed_files_are_opened_anew(host: FakeHost) -> None:
    source = ImageSource(host.open().source.spec)
    parts = host.open()
    room = parts.loader.plan(parts.reader.snapshot()).room
    before = source.plan(host.root, parts.reader, room)
    host.write(INITRD, b"i" * 10)
    assert source.plan(host.root, parts.reader, room) == before
    source.close()
    assert source.plan(host.root, parts.reader, room).parts.initrd_size == 10
    source.close()
    source.close()


def test_building_again_with_the_same_nonce_gives_the_same_block(host: FakeHost) -> None:
    parts = host.load()
    block = host.live_block()
    machine = parts.reader.snapshot()
    assert parts.loader.rebuilt(machine, block) == block
    assert parts.loader.full(machine).block.digest != block.digest, "each load has its own nonce"


def test_only_the_header_of_a_huge_kernel_is_read_for_a_plan(host: FakeHost) -> None:
    """1 GiB of memory, before."""
    parts = host.open()
    planned = parts.loader.plan(parts.reader.snapshot())
    os.truncate(host.root.path(KERNEL), 1 << 30)
    parts.source.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert parts.loader.plan(parts.reader.snapshot()).layout == planned.layout
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize("name", [KERNEL, INITRD])
def test_a_file_that_outgrows_the_reservation_is_not_read(host: FakeHost, name: str) -> None:
    parts = host.open()
    planned = parts.loader.plan(parts.reader.snapshot())
    os.truncate(host.root.path(name), 3 << 30)
    with pytest.raises(ImageError, match=rf"{name} has 3221225472 bytes, more than the reserv"):
        parts.source.image(planned, bytes(16))


@pytest.mark.parametrize("name", [KERNEL, INITRD])
def test_a_file_that_others_can_write_is_not_loaded(host: FakeHost, name: str) -> None:
    host.root.path(name).chmod(0o666)
    parts = host.open()
    with pytest.raises(ImageError, match=r"writable by others \(mode 0666\); chmod go-w"):
        parts.loader.full(parts.reader.snapshot())
    assert not host.kernel.calls


def test_a_file_made_writable_after_the_plan_is_not_loaded(host: FakeHost) -> None:
    parts = host.open()
    planned = parts.loader.plan(parts.reader.snapshot())
    host.root.path(INITRD).chmod(0o666)
    with pytest.raises(ImageError, match="writable by others"):
        parts.source.image(planned, bytes(16))


def test_a_header_that_changed_after_the_plan_is_not_loaded(host: FakeHost) -> None:
    parts = host.open()
    planned = parts.loader.plan(parts.reader.snapshot())
    host.root.path(KERNEL).write_bytes(bzimage(SyntheticBzImage(pref_address=0x2000000)))
    with pytest.raises(ImageError, match="changed while it was read"):
        parts.source.image(planned, bytes(16))
