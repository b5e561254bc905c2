"""Devices: the mesh, which axis of which parameter lies on it, and several hosts."""
