"""The distribution's hotplug rules on the live host: taken over, and given back."""

from __future__ import annotations

from typing import Protocol

from kdumphpd.distribution import udev_rules
from kdumphpd.errors import KdumphpdError
from kdumphpd.machine.files import Root


class HotplugRules(Protocol):
    """Whose rules answer hotplug: ours, which do nothing, or the distribution's."""

    def take_over(self) -> str:
        """Put ours in front, again if they are there; what went wrong, empty if nothing did."""

    def give_back(self) -> str:
        """Take ours away, if they are there; what went wrong, empty if nothing did."""


class LiveHotplugRules:
    """Those of the running host; see `kdumphpd.distribution.udev_rules`."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._text = udev_rules.shadow_text()

    def take_over(self) -> str:
        """See `HotplugRules`."""
        try:
            done = udev_rules.shadow(self._root, self._text, udev_rules.reload_live_rules)
        except KdumphpdError as error:
            return str(error)
        if done.overridden:
            directory = udev_rules.ADMIN_DIRECTORY
            return f"{directory}/{done.overridden[0]} stays in force and loads beside us; remove it"
        return done.problem

    def give_back(self) -> str:
        """See `HotplugRules`."""
        try:
            return udev_rules.unshadow(self._root, udev_rules.reload_live_rules).problem
        except KdumphpdError as error:
            return str(error)
