"""Faults that happen to runs: damage, signals, full disks, neighbours, changed inputs."""
