"""Score networks of galaxy images: seven priors of surveys (HSC, ZTF, LSST, Roman, lensed quasars), for deblending.

Their authors published them in the package ``galaxygrad`` 0.2.1, of which only the files are read; the package is not
imported, and needs not be importable: ``pip install --no-deps galaxygrad==0.2.1``.

A network is an MLP-Mixer (Tolstikhin et al. 2021) that predicts the score ``s(y, t)`` of a VP process with
``int beta = t``, ``0 < t <= 10``, where ``y = 10 ln(1 + x)`` of the flux ``x`` of a pixel, in the survey's own units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor, nn

from dode.denoisers import Images, NoisePrediction
from dode.schedules import VPContinuous
from dode.utils.files import FileError, first_line, present
from dode.zoo.catalogue import Card, family

T_MAX = 10.0  # the end of the process; the network gets the time as a share of it
PATCH, CHANNELS, HIDDEN, BLOCKS = 4, 64, 512, 4  # of all seven


# -- the network -------------------------------------------------------------------------------------------------------


def perceptron(features: int) -> nn.Sequential:
    """From so many features to as many."""
    return nn.Sequential(nn.Linear(features, HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, features))


class MixerBlock(nn.Module):
    """Mixes the patches of each channel, then the channels of each patch: ``(B, C, H, W)`` to the same."""

    def __init__(self, channels: int, patches: int) -> None:
        super().__init__()
        self.over_patches, self.over_channels = perceptron(patches), perceptron(channels)
        self.norm1, self.norm2 = nn.LayerNorm([channels, patches]), nn.LayerNorm([patches, channels])

    def forward(self, maps: Tensor) -> Tensor:
        h = maps.flatten(2)
        h = (h + self.over_patches(self.norm1(h))).transpose(1, 2)
        h = (h + self.over_channels(self.norm2(h))).transpose(1, 2)
        return h.unflatten(2, maps.shape[2:])


class ScoreMixer(nn.Module):
    """``(B, 1, H, W)`` noisy images and ``(B,)`` labels to the noise in them; ``t`` is the label times ``label_scale``.

    The noise is ``-sigma_t s(y, t)`` of the score ``s``, with ``sigma_t^2 = 1 - exp(-t)``.
    """

    classes = 0

    def __init__(self, side: int, label_scale: float = 1.0) -> None:
        super().__init__()
        patches = (side // PATCH) ** 2
        self.conv_in = nn.Conv2d(2, CHANNELS, PATCH, stride=PATCH)
        self.conv_out = nn.ConvTranspose2d(CHANNELS, 1, PATCH, stride=PATCH)
        self.blocks = nn.ModuleList(MixerBlock(CHANNELS, patches) for _ in range(BLOCKS))
        self.bottleneck = nn.Identity()  # what a designer reads (dode.distillation.designer)
        self.norm = nn.LayerNorm([CHANNELS, patches])
        self.label_scale = label_scale

    def score(self, y: Tensor, t: Tensor) -> Tensor:
        """``s(y, t)``, ``(B, 1, H, W)``; the time is one more channel."""
        h = self.conv_in(torch.cat([y, (t / T_MAX).view(-1, 1, 1, 1).expand_as(y)], dim=1))
        for block in self.blocks:
            h = block(h)
        h = self.bottleneck(h)
        return self.conv_out(self.norm(h.flatten(2)).unflatten(2, h.shape[2:]))

    def forward(self, y: Tensor, label: Tensor) -> Tensor:
        t = label * self.label_scale
        spread = (-torch.expm1(-t)).sqrt().view(-1, 1, 1, 1)
        return (-spread * self.score(y, t.to(y.dtype))).to(y.dtype)


# -- its file ----------------------------------------------------------------------------------------------------------


def stored(network: ScoreMixer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a file's arrays in its order, that of the network's parameters; the last is ``T_MAX``.

    There biases of convolutions have axes for height and width, and the transposed convolution has its outputs first.
    """
    for name, parameter in network.state_dict().items():
        shape = tuple(parameter.shape)
        if name == "conv_out.weight":
            shape = (shape[1], shape[0], *shape[2:])
        yield name, (*shape, 1, 1) if name in ("conv_in.bias", "conv_out.bias") else shape
    yield "t1", ()


def arrays(path: Path, network: ScoreMixer) -> dict[str, Tensor]:
    """The arrays of an ``.eqx`` file of equinox: one ``.npy`` after the other.  Nothing is unpickled.

    FileError for a file that holds anything else than what :func:`stored` names; a wrong shape is seen in the array's
    header, before its numbers are read.
    """
    found = dict[str, Tensor]()
    with present(path).open("rb") as file:
        for name, shape in stored(network):
            start = file.tell()
            try:
                np.lib.format.read_magic(file)
                there, _, kind = np.lib.format.read_array_header_1_0(file)
                if there != shape or kind.kind != "f":
                    raise FileError(f"{path} is not such a network: its {name!r} is {kind} {there}, not float {shape}")
                file.seek(start)
                found[name] = torch.from_numpy(np.lib.format.read_array(file, allow_pickle=False))
            except FileError:
                raise
            except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
                where = f"at {name!r} ({first_line(error)})"
                raise FileError(f"{path} is no whole sequence of .npy arrays {where}; nothing in it was run") from None
        if file.read(1):
            raise FileError(f"{path} is longer than such a network; get it again")
    return found


def filled(network: ScoreMixer, path: Path) -> ScoreMixer:
    """The network with the numbers of a file.  FileError as of :func:`arrays`, and for another range of times."""
    found = arrays(path, network)
    if (t_max := float(found.pop("t1"))) != T_MAX:
        raise FileError(f"{path} is of a network with times up to {t_max:g}, not {T_MAX:g}")
    # Here a transposed convolution is a correlation with the kernel as it is: the same kernel turned by 180 degrees.
    found["conv_out.weight"] = found["conv_out.weight"].transpose(0, 1).flip(2, 3)
    network.load_state_dict({name: found[name].reshape(p.shape) for name, p in network.state_dict().items()})
    return network


# -- what a sample is --------------------------------------------------------------------------------------------------

SOFTENING = 0.05  # the flux around which a picture goes from linear to logarithmic
WHITE = 1.0  # the flux above the sky that is white
SKY = {"galaxies-lsst-60": 1.0, "galaxies-roman-120": 1.0}  # flux of an empty pixel, as samples have it; of others 0


def sky_of(checkpoint: str) -> float:
    """The flux of an empty pixel of a network's images: the total flux and pictures count from there."""
    return SKY.get(checkpoint, 0.0)


def flux(y: Tensor) -> Tensor:
    """The flux ``x = exp(y / 10) - 1`` of samples ``y``, in the survey's own units."""
    return torch.expm1(0.1 * y)


def from_flux(x: Tensor) -> Tensor:
    """Samples ``y = 10 ln(1 + x)`` of a flux above -1."""
    return 10 * torch.log1p(x)


def stretched(y: Tensor, sky: float = 0.0) -> Tensor:
    """Pictures of samples: ``asinh((x - sky) / b) / asinh(white / b)``, 0 for an empty pixel (Lupton et al. 2004).

    Softening ``b`` and white are fixed, so a sample is one picture, whatever is drawn beside it.  Nothing is clipped.
    """
    return torch.asinh((flux(y) - sky) / SOFTENING) / math.asinh(WHITE / SOFTENING)


# -- the cards ---------------------------------------------------------------------------------------------------------


def _card(name: str, file: str, size: int, digest: str) -> Card:
    side = int(name.rpartition("-")[2])
    images = Images(low=0.0, high=1.0, to_picture=partial(stretched, sky=sky_of(f"galaxies-{name}")), to_values=flux)
    return Card(
        name=f"galaxies-{name}", file=f"eqx_{file}.eqx", package="galaxygrad==0.2.1", size=size,
        digest=f"sha256:{digest}", licence="no licence stated", source="Sampson et al. 2024", shape=(1, side, side),
        schedule=VPContinuous(beta_min=T_MAX, beta_max=T_MAX), label_scale=T_MAX / 999, images=images,
    )  # fmt: skip


CARDS = (
    _card("hsc-32", "hsc_ScoreNet32", 2_430_092, "cb926562fcdfcbd33952fea8b2394074e75cb652fb7824c4c809a5f89a0a6532"),
    _card("hsc-64", "hsc_ScoreNet64", 6_463_628, "4758114b1b77e4640ca7b834a976202aeb126fd7332ec07842af46d72c6b2e01"),
    _card("ztf-32", "ZTF_ScoreNet32", 2_430_092, "60b29e6b9b7b4baa4ddc84132d083991c9e1e2910f55f3e9ae16e65bf0df8f47"),
    _card("ztf-64", "ZTF_ScoreNet64", 6_463_628, "806cb83de98d8aff924dd13b267bcb157d72ddb819804a541134a06adb391065"),
    _card("lsst-60", "lsst_ScoreNet60", 5_812_380, "93ef40f17a6e7e87e6527c90d5c1d4f2b17c77bbedfc14b08d014c53aa2db0e0"),
    _card("quasar-72", "quasar_lens72", 7_892_172, "b1574b390d2e450521f6234ff3f3288937c53237a76189883d61342c9d293c2f"),
    _card("roman-120", "roman_Scorenet120", 19_992_780,
          "68a1d78410c877b7b50f466b505cb75d073f1f44e904420ed0fd9fb678201b03"),
)  # fmt: skip


@family("galaxies", *CARDS)
def read(path: Path, card: Card) -> NoisePrediction:
    """A sequence of arrays, in the order of equinox's tree."""
    assert card.schedule is not None
    network = filled(ScoreMixer(card.shape[1], card.label_scale), path)
    return NoisePrediction(network, card.shape, card.schedule)
