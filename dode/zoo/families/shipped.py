"""The networks that dode trains (``dode train``), in files that say everything themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dode import denoisers as kinds
from dode.denoisers import PICTURES, NetworkDenoiser
from dode.schedules import from_config
from dode.utils.files import FileError, first_line, load_tensors
from dode.zoo.catalogue import Card, family
from dode.zoo.datasets import described
from dode.zoo.unet import UNet

WRAPPERS: tuple[type[NetworkDenoiser], ...] = (
    kinds.NoisePrediction, kinds.DataPrediction, kinds.VPrediction, kinds.FlowPrediction, kinds.EDMPrediction,
    kinds.ConsistencyPrediction,
)  # fmt: skip


@family("dode", suffix=".safetensors")
def read(path: Path, card: Card | None) -> NetworkDenoiser:
    """Config, wrapper and schedule out of the file's header."""
    tensors, meta = load_tensors(path, "network")
    try:
        network = UNet(**meta["config"])
        network.load_state_dict(tensors)  # stored in half precision, widened here
        wrapper = {c.__name__: c for c in WRAPPERS}[meta["wrapper"]]
        extra = {} if meta.get("sigma_data") is None else {"sigma_data": meta["sigma_data"]}
        found = wrapper(network, meta["shape"], from_config(meta["schedule"]), name=meta["name"], **extra)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a denoiser of this version of dode ({first_line(error)})") from None
    if known := described(meta):
        found.images = replace(PICTURES, evaluators=known.name)
    return found
