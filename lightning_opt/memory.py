"""How much memory is free: on an accelerator, or for this process on its host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 4 * 2**30
"""What is assumed of a host that does not tell."""


def available(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that can be had on a device: of the host's memory if it is the CPU.

    An accelerator that does not tell has none; such accelerators share the memory of the host. The
    limits of control groups count, because batch systems and containers kill what exceeds them.
    ``root`` is where ``proc`` and ``sys`` are.
    """
    if device.type == "cpu":
        return max(0, min([_of_system(root), *_of_control_groups(root)]))
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return 0
    free, _ = module.mem_get_info(device)
    # What the caching allocator holds and does not use is free, too.
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def _of_system(root: Path) -> int:
    table = _table(root / "proc/meminfo")
    if "MemAvailable:" in table:
        return table["MemAvailable:"] * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _of_control_groups(root: Path) -> Iterator[int]:
    """What each limit on this process leaves, of version 2 and of version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if controllers == "":
            limit, usage, cache = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount = mount / "memory"
            limit, usage, cache = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            most, used = _text(folder / limit).strip(), _text(folder / usage).strip()
            if most.isdecimal() and used.isdecimal():
                # The cache of files counts as used, and gives way.
                yield int(most) - int(used) + _table(folder / "memory.stat").get(cache, 0)
            if folder == mount:
                break


def _table(path: Path) -> dict[str, int]:
    """The lines ``name number ...`` of a file."""
    words = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in words if len(row) > 1 and row[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
