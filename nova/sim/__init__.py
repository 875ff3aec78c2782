"""Nodes in one process under one seed: virtual time, a network and disks that fail, and checks after every event."""
