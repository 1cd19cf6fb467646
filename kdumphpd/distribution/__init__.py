"""The host's own kdump: what it would load, its lock, its udev rule, and when it acted."""
