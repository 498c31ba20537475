"""Whether a device computes in bf16, which a network takes half of the memory in and, there, less time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def has_bf16(device: str | torch.device) -> bool:
    """Whether ``device`` has bf16 instructions; every GPU that torch runs on counts as one that has.

    A processor without them emulates them: the shipped networks take some seven times as long there as in float32.
    """
    if torch.device(device).type != "cpu":
        return True
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch
    return any(there for what, there in has.items() if "bf16" in what)
