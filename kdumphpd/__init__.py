"""Keeps the kdump crash image current across CPU and memory hotplug."""
