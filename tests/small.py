"""What many tests use: the shipped networks in small, without trained weights; a mixture; a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dode import zoo
from dode.denoisers import MixtureDenoiser
from dode.utils.files import FileError, load_tensors, save_tensors
from dode.zoo.unet import UNet

# exact denoisers in float64: four groups of samples of three numbers
_MEANS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
MIXTURE = MixtureDenoiser(_MEANS, torch.tensor([0.3, 0.5, 0.8, 0.2]))


@contextmanager
def refused(message: str, error: type[Exception] = ValueError) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """What is done within is refused in one line, with ``message`` in it."""
    with pytest.raises(error) as caught:
        yield caught
    assert message in str(caught.value) and "\n" not in str(caught.value)


def refusal(path: Path, load: Callable[..., object], *more: object) -> str:
    """The one line in which a file is refused: it names the file."""
    with refused(str(path), FileError) as caught:
        load(path, *more)
    return str(caught.value)


def network_file(folder: Path, name: str) -> Path:
    """A file like that of the shipped ``name``, in ``folder``: all of its facts, and an untrained network."""
    _, facts = load_tensors(zoo.checkpoint_file(name), "network")
    facts["config"] |= dict(widths=[8, 16], heads=2, patch=4)
    network, generator = UNet(**facts["config"]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return save_tensors(folder / f"{name}.safetensors", network.state_dict(), "network", facts)


def tiles(path: Path, side: int = 28) -> Tensor:
    """The pictures ``(B, C, side, side)`` of a sheet, uint8, after a look at the white lines between them."""
    with Image.open(path) as image:
        flat = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
        sheet = flat.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1)
    assert (sheet[:, :: side + 1] == 255).all() and (sheet[:, :, :: side + 1] == 255).all()
    found = sheet[:, 1:, 1:].unfold(1, side, side + 1).unfold(2, side, side + 1)
    return found.permute(1, 2, 0, 3, 4).flatten(0, 1)
