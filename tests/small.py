"""The shipped networks in small: what is tested for its plumbing needs no trained weights."""

from __future__ import annotations

from pathlib import Path

import torch

from dode import zoo
from dode.utils.files import load_tensors, save_tensors
from dode.zoo.unet import UNet


def network_file(folder: Path, name: str) -> Path:
    """A file like that of the shipped ``name``, in ``folder``: all of its facts, and an untrained network."""
    _, facts = load_tensors(zoo.checkpoint_file(name), "network")
    facts["config"] |= dict(widths=[8, 16], heads=2, patch=4)
    network, generator = UNet(**facts["config"]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return save_tensors(folder / f"{name}.safetensors", network.state_dict(), "network", facts)
