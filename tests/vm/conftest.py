"""Fixtures for tests that boot a real kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.kdump_host import Software
from tests.vm.rig import (
    BOOKWORM,
    KDUMP_UTILS,
    KDUMP_UTILS_TRIXIE,
    TRIXIE,
    GuestImage,
    Overlay,
    add_product,
    build_or_reuse,
    build_rpm,
    build_wheel,
)

TREE = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bookworm() -> GuestImage:
    """A Debian 12 guest, built when there is none for the present sources."""
    return build_or_reuse(BOOKWORM, TREE / "build/vm")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product: the wheel that KDUMPHPD_WHEEL names, or one built from the tree."""
    given = os.environ.get("KDUMPHPD_WHEEL")
    return Path(given).resolve() if given else build_wheel(TREE, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def product(bookworm: GuestImage, wheel: Path, tmp_path: Path) -> Overlay:
    """An overlay with the product and its configuration; the test enables the unit."""
    overlay = Overlay(tmp_path / "overlay")
    add_product(overlay, bookworm.guest, wheel, TREE / "systemd")
    return overlay


@pytest.fixture(scope="session")
def scripts() -> Path | None:
    """The real kdump scripts that KDUMPHPD_KDUMP_UTILS names; None for the stand-in."""
    given = os.environ.get("KDUMPHPD_KDUMP_UTILS")
    return Path(given).resolve() if given else None


@pytest.fixture(scope="session")
def software(
    scripts: Path | None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Software:
    """The stand-in and the wheel; or the real scripts and the RPM of KDUMPHPD_RPM or the tree."""
    if scripts is None:
        return Software(request.getfixturevalue("bookworm"), None, request.getfixturevalue("wheel"))
    given = os.environ.get("KDUMPHPD_RPM")
    rpm = Path(given) if given else build_rpm(TREE, tmp_path_factory.mktemp("rpm"), "1")
    return Software(build_or_reuse(KDUMP_UTILS, TREE / "build/vm"), scripts, rpm)


@pytest.fixture(scope="session")
def software_on_trixie(scripts: Path | None, wheel: Path) -> Software:
    """As ``software``, on a kernel that updates the header itself.

    With the wheel: the RPM is for another Python.
    """
    guest = KDUMP_UTILS_TRIXIE if scripts else TRIXIE
    return Software(build_or_reuse(guest, TREE / "build/vm"), scripts, wheel)
