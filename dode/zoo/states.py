"""Files of torch's as weights by name: state dictionaries, and the training states of latent diffusion.

Everything goes through ``torch.load(weights_only=True)``, which looks up no name and calls nothing but what makes a
tensor.  A training state of PyTorch Lightning's names classes of its program as well; in their place stands an object
that ignores its arguments.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dode.utils.files import FileError, atomic, present

MEMBER = "model.ckpt"  # in the zip files of latent diffusion (Rombach et al. 2022)
PLAIN, AVERAGED = "model.diffusion_model.", "model_ema."
LIGHTNING = ("pytorch_lightning.", "lightning.", "omegaconf.")  # whose classes a training state may name


class Ignored:
    """In the place of an object of the training program."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path, ignored: tuple[str, ...] = ()) -> Any:
    """What torch finds in a file; objects whose names begin with one of ``ignored`` may be there, as :class:`Ignored`.

    FileError for a file that is missing, a folder, not torch's, damaged, or asks for more than tensors.
    """
    whole = zipfile.is_zipfile(present(path))
    try:
        # files of the older format, which are no zip files, cannot be asked for their names
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if ignored and whole else []
        stand_ins: list[Any] = [(Ignored, name) for name in names if name.startswith(ignored)]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:
        reasons = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line] or [str(error).split("\n")[0]]
        raise FileError(f"{path} is not a file of weights alone ({reasons[0][:200]}); nothing in it was run") from None


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file; of the lists that DDIM's program writes, the averaged weights.

    FileError as of :func:`read`, and for a file that holds anything else.
    """
    state = read(path)
    if isinstance(state, (list, tuple)) and state:  # network, optimizer, epoch, step, and averages if there are any
        state = state[4] if len(state) > 4 else state[0]
    if not _is_state(state):
        raise FileError(f"{path} does not hold the weights of one network")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def latent_tensors_of(path: Path) -> dict[str, Tensor]:
    """The denoiser in a training state of latent diffusion, or in the zip file that has one.

    Its autoencoder stays out.  The weights are the averaged ones, with which the authors sample, if they are there:
    they are stored under the parameter's name without its dots.
    FileError as of :func:`read`, and for a file that holds no such denoiser.
    """
    found = read(unpacked(path), LIGHTNING)
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not _is_state(state):
        raise FileError(f"{path} is no training state of latent diffusion: it has no 'state_dict' of tensors")
    assert state is not None
    names = [name.removeprefix(PLAIN) for name in state if name.startswith(PLAIN)]
    if not names:
        raise FileError(f"{path} holds no denoiser: none of its names begins with {PLAIN!r}")
    averaged = {name: AVERAGED + ("diffusion_model." + name).replace(".", "") for name in names}
    return {name: state.get(averaged[name], state[PLAIN + name]) for name in names}


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(value, Tensor) for value in found.values())


def unpacked(path: Path) -> Path:
    """The training state in a zip file, unpacked beside it once, whole or not at all; another file as it is.

    FileError for a missing file, or a zip file that holds no such state or is damaged.
    """
    if not zipfile.is_zipfile(present(path)):
        return path
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):  # one of torch's own, which are zip files too
            return path
        if MEMBER not in names:
            raise FileError(f"{path} holds no {MEMBER}, but {', '.join(names[:3]) or 'nothing'}; get it again")
        state = path.with_suffix(".ckpt")
        if not state.is_file() or state.stat().st_mtime_ns <= path.stat().st_mtime_ns:  # of an earlier zip file
            try:
                with atomic(state) as temporary, archive.open(MEMBER) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file)
            except (zipfile.BadZipFile, zipfile.zlib.error, EOFError) as error:  # type: ignore[attr-defined]
                raise FileError(f"{path} is damaged ({error}); delete it and get it again") from None
    return state
