"""Where the image comes from: the kernel, initrd and command line that were configured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kdumphpd.errors import ImageError
from kdumphpd.image import bzimage, uki
from kdumphpd.image.bzimage import BzImage
from kdumphpd.image.files import ImageFile
from kdumphpd.image.layout import Room
from kdumphpd.image.plan import CrashImage, ImageParts, ImagePlan, make_plan
from kdumphpd.load.buffers import LockedBuffer
from kdumphpd.machine import boot_params, efi
from kdumphpd.machine import reservation as reservations
from kdumphpd.machine.files import Root
from kdumphpd.machine.snapshot import MachineReader


@dataclass(frozen=True)
class ImageSpec:
    """What to load, and who said so.

    Attributes:
        kernel: a bzImage or a unified kernel image.
        initrd: its initrd.
        command_line: without what the loader adds.
        origin: a configuration file's path, or the name of the host's kdump.
        origins: where each value comes from, by its name, where ``origin`` is not all.
        no_kexec_load: why kexec_load(2) may not load it; empty if it may.
        no_file_load: the same for kexec_file_load(2) by us.
        remark: what to tell of how it is loaded; empty if nothing.
    """

    kernel: Path
    initrd: Path
    command_line: str
    origin: str
    origins: tuple[tuple[str, str], ...] = ()
    no_kexec_load: str = ""
    no_file_load: str = ""
    remark: str = ""


class ImageSource:
    """The files of one `ImageSpec`, opened at the first use and kept open.

    Args:
        spec: what to load, or whom to ask for it at the first use. A delta load needs
            none, so a host whose kdump cannot say goes on with these.

    Raises from every method:
        InputError: a file is missing or cannot be read.
        ImageError: a file or the command line cannot be used.
        KdumphpdError: whoever was asked could not say; the next use asks again.
    """

    def __init__(self, spec: ImageSpec | Callable[[], ImageSpec]) -> None:
        self._said = spec
        self._kernel: ImageFile | None = None
        self._initrd: ImageFile | None = None

    @property
    def spec(self) -> ImageSpec:
        """What to load, and who said so."""
        if not isinstance(self._said, ImageSpec):
            self._said = self._said()
        return self._said

    @property
    def known(self) -> ImageSpec | None:
        """`spec`, without asking for it."""
        return self._said if isinstance(self._said, ImageSpec) else None

    @property
    def is_open(self) -> bool:
        """Whether the files have been opened."""
        return self._kernel is not None

    def plan(self, root: Root, reader: MachineReader, room: Room) -> ImagePlan:
        """Plan the image for the host under ``root``; reads no more than headers and sizes."""
        resources = reader.resources()
        reservation = reservations.find(root, resources)
        self.bound(reservation.main.size)
        if not root.recorded:
            for one in self.files():
                one.check_owner()
        parts = ImageParts(
            kernel=self.kernel(reader),
            initrd_size=self.files()[1].size(),
            command_line=self.spec.command_line,
        )
        return make_plan(
            parts,
            reservation,
            room,
            resources,
            reader.fixed().cma,
            boot_params.read(root),
            efi.read(root),
        )

    def bound(self, limit: int) -> None:
        """Read no file that is larger than ``limit`` bytes, the size of the reservation."""
        for one in self.files():
            one.bound(limit)

    def image(self, plan: ImagePlan, nonce: bytes) -> CrashImage:
        """Read the files and build the image that ``plan`` describes; the caller closes it."""
        initrd = self.files()[1]
        content = self._protected_mode_part(plan.parts.kernel)
        ramdisk = initrd.read()
        if len(ramdisk) != plan.parts.initrd_size or len(content) != plan.parts.kernel.size:
            content.close()
            ramdisk.close()
            raise ImageError(
                f"{self.spec.kernel} or {initrd.path} changed while it was read",
                "try again when it is complete",
            )
        return CrashImage.build(plan, nonce, content, ramdisk)

    def kernel(self, reader: MachineReader) -> BzImage:
        """The kernel's setup header, checked for what this machine asks of it."""
        return _parse(self.files()[0], five_level=reader.fixed().addresses.five_level)

    def protected_mode_part(self, reader: MachineReader) -> LockedBuffer:
        """What of the kernel ends up in memory, whoever loads it; the caller closes it."""
        return self._protected_mode_part(self.kernel(reader))

    def _protected_mode_part(self, parsed: BzImage) -> LockedBuffer:
        kernel = self.files()[0]
        with kernel.read() as whole, whole.view() as view, _bzimage(view, kernel) as inside:
            # Between its header, which is planned with, and its content it may have changed.
            if not _is_unchanged(inside, parsed):
                raise ImageError(
                    f"{kernel.path} changed while it was read", "try again when it is complete"
                )
            return LockedBuffer.of(inside[parsed.offset : parsed.offset + parsed.size])

    def kernel_inside(self) -> LockedBuffer | None:
        """The kernel that a unified kernel image carries; None if the file is the kernel."""
        kernel = self.files()[0]
        with kernel.read() as whole, whole.view() as view:
            place = uki.linux_section(view, f"kernel {kernel.path}")
            if place is None:
                return None
            with view[place.start : place.end + 1] as inside:
                return LockedBuffer.of(inside)

    def close(self) -> None:
        """Let go of the files; the next use opens what the paths name then."""
        for one in (self._kernel, self._initrd):
            if one is not None:
                one.close()
        self._kernel = self._initrd = None

    def files(self) -> tuple[ImageFile, ImageFile]:
        """The open kernel and initrd."""
        if self._kernel is None:
            self._kernel = ImageFile.open("kernel", self.spec.kernel)
        if self._initrd is None:
            self._initrd = ImageFile.open("initrd", self.spec.initrd)
        return self._kernel, self._initrd


def _parse(kernel: ImageFile, *, five_level: bool) -> BzImage:
    name = f"kernel {kernel.path}"
    whole = kernel.whole()
    place = uki.linux_section(whole, name)
    if place is None:
        return bzimage.parse(whole, name, five_level_paging=five_level)
    return bzimage.parse(whole.part(place), f"{name} (.linux)", five_level_paging=five_level)


def _bzimage(content: memoryview, kernel: ImageFile) -> memoryview:
    """The bzImage in the file: in a unified kernel image it is not all of it."""
    place = uki.linux_section(content, f"kernel {kernel.path}")
    return content[:] if place is None else content[place.start : place.end + 1]


def _is_unchanged(content: memoryview, parsed: BzImage) -> bool:
    try:
        return bzimage.parse(content) == parsed
    except ImageError:
        return False
