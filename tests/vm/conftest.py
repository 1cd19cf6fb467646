"""Fixtures for tests that boot a real kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.rig import BOOKWORM, GuestImage, Overlay, add_product, build_or_reuse, build_wheel

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
