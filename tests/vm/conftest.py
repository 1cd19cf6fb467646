"""Fixtures for tests that boot a real kernel."""

from __future__ import annotations

import pytest

from tests.vm.rig import BOOKWORM, GuestImage, build_or_reuse


@pytest.fixture(scope="session")
def bookworm() -> GuestImage:
    return build_or_reuse(BOOKWORM)
