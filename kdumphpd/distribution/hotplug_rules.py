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


class RulesKeeper:
    """Has our rules in force exactly while we are able and willing to keep the loaded image.

    In every other state the distribution's answer is better than none.
    """

    def __init__(self, rules: HotplugRules) -> None:
        self._rules = rules
        self._ours = False
        self.problem = ""

    def follow(self, keeps: bool, *, again: bool = False) -> bool:
        """Have the rules as ``keeps`` asks for.

        Args:
            keeps: whether we keep the image.
            again: look after it although that has not changed: kdump's own start may have
                put its rules back (SUSE's does).

        Returns:
            Whether they are ours from now on. What happened before has been answered by
            the distribution's rules, or not yet: look again.
        """
        if keeps == self._ours and not again:
            return False
        fresh = keeps and not self._ours
        self.problem = self._rules.take_over() if keeps else self._rules.give_back()
        self._ours = keeps
        return fresh


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
