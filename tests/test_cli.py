"""The command line: it does what the library does, and says in one line what it cannot do."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from PIL import Image
from torch import Tensor

import dode
from dode import __main__ as cli
from dode import distillation, solvers, zoo
from dode.distillation import d_ode
from dode.experiments import comparisons, fits
from dode.schedules import karras
from dode.utils.files import load_tensors, save_tensors
from dode.zoo.datasets import to_uint8

ROOT = Path(__file__).resolve().parents[1]
NOISE, DATA = "fashion-mnist-noise", "fashion-mnist-data"


def commands(text: str) -> list[str]:
    """The examples in a text, those on several lines too."""
    lines = (" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("python -m dode ") and " --" in line]


EXAMPLES = [command for text in (cli.ABOUT, cli.DISTILL, cli.SAMPLE) for command in commands(text)]


def run(command: str) -> int:
    return cli.main(shlex.split(command))


def pixels(path: Path) -> Tensor:
    """``(C, H, W)`` uint8."""
    with Image.open(path) as image:
        values = torch.tensor(list(image.tobytes()), dtype=torch.uint8)
        return values.reshape(image.height, image.width, len(image.getbands())).permute(2, 0, 1)


def tiles(sheet: Tensor, side: int = 28) -> list[Tensor]:
    """The images of a sheet, after a look at the white lines between them."""
    assert (sheet[:, :: side + 1] == 255).all() and (sheet[:, :, :: side + 1] == 255).all()
    rows, columns = (n // (side + 1) for n in sheet.shape[1:])
    size = side + 1
    cut = lambda r, c: sheet[:, r * size + 1 : (r + 1) * size, c * size + 1 : (c + 1) * size]  # noqa: E731
    return [cut(r, c) for r in range(rows) for c in range(columns)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- distill -------------------------------------------------------------------------------------


def plain() -> dode.Tableau:
    model = dode.load(NOISE)
    noise = dode.initial_noise(model.shape, range(2))
    return d_ode(model, solvers.ddim(model.grid, nfe=3), noise, scale=2, seeds=range(2))


def every_option() -> dode.Tableau:
    model, seeds = dode.load(NOISE), [5, 6, 9]
    same = functools.partial(solvers.deis, order=2, variable="rho")
    table = same(comparisons.grid_function("Karras", model), nfe=3, afs=True)
    return d_ode(
        model, table, dode.initial_noise(model.shape, seeds), teacher=same, scale=2, align="index", first_step="none",
        equation=9, batch_size=2, seeds=seeds,
    )  # fmt: skip


def heun() -> dode.Tableau:
    model = dode.load(DATA)
    noise = dode.initial_noise(model.shape, range(1))
    return d_ode(model, solvers.heun(model.grid, nfe=3), noise, teacher=solvers.heun, scale=2, seeds=range(1))


def compared(what: str = "all") -> distillation.Residual:
    """What the last images are compared in."""
    return distillation.pixels if what == "pixels" else fits.residual("cpu", what)


def second_order() -> dode.Tableau | distillation.Designed:
    model = dode.load(DATA)
    table, noise = solvers.ddim(model.grid, nfe=2), dode.initial_noise(model.shape, range(4))
    return distillation.RECIPES["gauss-newton"](
        distillation.Task(model, table, solvers.ddim, noise, compared("seen"), range(4))
    )


def programmed() -> dode.Tableau:
    model = dode.load(DATA)
    table = solvers.ipndm(distillation.gits(model, dode.initial_noise(model.shape, range(2))), nfe=3)
    return table.with_full(
        table.full, solver="gits-ipndm", method="gits", model=DATA, shape=[1, 28, 28], nfe=3, seeds=[0, 1], images=2,
        grid=table.levels.tolist(), network_evaluations=2 * 60,
    )  # fmt: skip


def recipe(name: str, compare: str = "all", **options: Any) -> dode.Tableau | distillation.Designed:
    """On seeds 5 to 8, with an analytical first step."""
    model = dode.load(DATA)
    grid = comparisons.grid_function("Karras", model)
    clean_images = functools.partial(solvers.deis, variable="log_rho", basis="data", afs=True)
    make = lambda levels: clean_images(torch.cat([model.grid(1)[:1], levels]))  # noqa: E731
    noise, table = dode.initial_noise(model.shape, range(5, 9)), clean_images(grid, nfe=2)
    return distillation.RECIPES[name](
        distillation.Task(model, table, make, noise, compared(compare), [5, 6, 7, 8], **options)
    )


BY_RECIPE = f"--checkpoint {DATA} --solver deis:variable=log_rho,basis=data --nfe 2 --afs --grid karras --seeds 5-8"


@pytest.mark.parametrize(
    ("options", "library"),
    [
        (f"--checkpoint {DATA} --solver ipndm --nfe 3 --images 2 --method gits", programmed),
        (f"--checkpoint {DATA} --solver ddim --nfe 2 --images 4 --method gauss-newton", second_order),
        (f"{BY_RECIPE} --method ld3", functools.partial(recipe, "ld3")),
        (f"{BY_RECIPE} --method s4s --compare features", functools.partial(recipe, "s4s")),
        (f"{BY_RECIPE} --method s4s-alt --compare pixels", functools.partial(recipe, "s4s-alt", "pixels")),
        (f"{BY_RECIPE} --method dlms --trajectories 32", functools.partial(recipe, "dlms", trajectories=32)),
        (f"{BY_RECIPE} --method amed --trajectories 32", functools.partial(recipe, "amed", trajectories=32)),
        (
            f"{BY_RECIPE} --method dlms-fixed --trajectories 64 --compare pixels",
            functools.partial(recipe, "dlms-fixed", "pixels", trajectories=64),
        ),
        (f"--checkpoint {NOISE} --solver ddim --nfe 3 --images 2 --scale 2", plain),
        (
            f"--checkpoint {NOISE} --solver deis:variable=rho --order 2 --nfe 3 --grid karras --afs --seeds 5-6,9 "
            "--teacher same --scale 2 --align index --first-step none --equation 9 --batch-size 2 --method d-ode",
            every_option,
        ),
        (f"--checkpoint {DATA} --solver heun --nfe 3 --images 1 --scale 2 --teacher same --device cpu", heun),
    ],
)
def test_the_file_is_the_one_the_library_makes(
    options: str, library: Callable[[], dode.Tableau | distillation.Designed], here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(f"distill {options} --out new/d.safetensors") == 0
    table = library()
    assert Path("new/d.safetensors").read_bytes() == table.save("library.safetensors").read_bytes()
    said = capsys.readouterr()
    assert ("100%|" in said.err or "it/s" in said.err) == (table.metadata["method"] != "gits")  # which takes seconds
    wrote, rmse, sample = said.out.splitlines()
    assert wrote == (
        f"wrote new/d.safetensors: {table.metadata['solver']}, NFE {table.nfe}; "
        f"{table.metadata['network_evaluations']:,} network evaluations"
    )
    facts = table.metadata
    if facts["method"] == "d-ode":
        assert f"{facts['fit_rmse'][-1]:.4f} ({facts['plain_rmse'][-1]:.4f}" in rmse
    elif facts["method"] == "gits":
        assert rmse.split()[2] == "80" and rmse.split()[-1] == "0"
    else:
        error = f"{min(facts['cost']):.4g} ({facts['cost'][0]:.4g} before)"
        assert rmse == f"error to the teacher's images, on seeds held back from the fit: {error}"
    command = sample.removeprefix("sample with it: python -m dode ")
    assert run(f"{command} --seeds 1000") == 0 and Path("new/d.png").is_file()


def test_an_older_file_is_replaced_and_a_checkpoint_is_not(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = here / "mine.safetensors"
    mine.write_bytes((ROOT / f"dode/checkpoints/{NOISE}.safetensors").read_bytes())
    (here / "d.safetensors").write_text("old")
    options = "distill --checkpoint mine.safetensors --solver ddim --nfe 1 --images 1 --scale 2"
    assert run(f"{options} --out d.safetensors") == 0
    assert dode.Tableau.load("d.safetensors").nfe == 1
    assert "--checkpoint mine.safetensors" in capsys.readouterr().out.splitlines()[-1]  # it must be said again
    before = mine.read_bytes()
    assert run(f"{options} --out ./mine.safetensors") == 2 and mine.read_bytes() == before


# --- sample --------------------------------------------------------------------------------------


def test_the_picture_holds_the_librarys_samples(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = dode.load(NOISE)
    table = plain()
    table.save("d.safetensors")
    assert run("sample --solver d.safetensors --seeds 7-9,4,5 --columns 3 --batch-size 4 --out deep/er/d.png") == 0
    said = capsys.readouterr()
    assert said.out == "wrote deep/er/d.png: 5 images by d-ddim, NFE 3\n" and "sampling: 100%|" in said.err
    images = dode.sample(model, table, dode.initial_noise(model.shape, [7, 8, 9, 4, 5]), batch_size=4)
    sheet = pixels(here / "deep/er/d.png")
    assert sheet.shape == (1, 2 * 29 + 1, 3 * 29 + 1)
    *found, empty = tiles(sheet)
    assert torch.equal(torch.stack(found), to_uint8(images))
    assert (empty == 255).all()
    assert [p.name for p in (here / "deep/er").iterdir()] == ["d.png"]


@pytest.mark.parametrize("kind", ["dlms", "amed"])
def test_a_solver_that_designs_its_steps_is_drawn_as_any_other(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = dode.load(DATA)
    if kind == "dlms":
        solver: distillation.Designed = distillation.begin_dlms(
            model, solvers.ddim(model.grid, nfe=3, basis="data", afs=True)
        )
    else:
        solver = distillation.begin_amed(model, lambda n: karras(n, model.sigma_min, model.sigma_max), 3)
    generator = torch.Generator().manual_seed(0)
    for weight in solver.designer.requires_grad_(False).parameters():
        weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    solver = replace(solver, metadata=dict(solver=f"{kind}-deis", model=DATA, shape=[1, 28, 28]))
    solver.save("s.safetensors")
    assert run("sample --solver s.safetensors --seeds 3-5 --batch-size 2 --out s.png") == 0
    assert capsys.readouterr().out == f"wrote s.png: 3 images by {kind}-deis, NFE 3\n"
    images = dode.sample(model, solver, dode.initial_noise(model.shape, range(3, 6)), batch_size=2)
    assert torch.equal(torch.stack(tiles(pixels(here / "s.png"))), to_uint8(images))


def test_a_solver_by_its_name(here: Path) -> None:
    model = dode.load(DATA)
    options = f"--checkpoint {DATA} --nfe 2 --grid log_snr --order 2 --seeds 3-4"
    assert run(f"sample --solver unipc:variant=bh1 {options} --out a.png") == 0
    table = solvers.unipc(comparisons.grid_function("log SNR", model), nfe=2, order=2, variant="bh1")
    images = dode.sample(model, table, dode.initial_noise(model.shape, [3, 4]))
    assert torch.equal(torch.stack(tiles(pixels(here / "a.png"))), to_uint8(images))  # two columns, not eight


def test_a_picture_in_colour(here: Path) -> None:
    images = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1
    picture = cli.picture(images, 2)
    assert picture.mode == "RGB" and picture.size == (2 * 5 + 1, 2 * 6 + 1)
    picture.save("c.png")
    sheet = pixels(here / "c.png")
    assert torch.equal(sheet[:, 1:6, 6:10], to_uint8(images)[1]) and torch.equal(
        sheet[:, 7:12, 1:5], to_uint8(images)[2]
    )
    assert (sheet[:, 7:12, 6:10] == 255).all()


def test_a_picture_looks_as_in_the_book() -> None:
    plots = pytest.importorskip("dode.experiments.plots")
    images = torch.rand(6, 1, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    book = torch.from_numpy(plots.mosaic(images, 4)) * 255
    picture = cli.picture(images, 4)
    ours = torch.tensor(list(picture.tobytes())).reshape(picture.height, picture.width)
    assert (ours - book).abs().max() <= 0.5001


def test_a_file_is_known_by_its_ending_in_capitals_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "MINE.SAFETENSORS").write_bytes((ROOT / f"dode/checkpoints/{NOISE}.safetensors").read_bytes())
    assert run("distill --checkpoint MINE.SAFETENSORS --solver ddim --nfe 1 --images 1 --out D.Safetensors") == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("sample with it: python -m dode ")
    assert run(f"{command} --seeds 1000") == 0 and Path("D.png").is_file()
    assert zoo.data_set_of("MINE.SAFETENSORS").source == zoo.data_set_of(NOISE).source


# --- what is said --------------------------------------------------------------------------------


def test_every_solver_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("solvers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["solver", "basis", "orders", "calls", "source"]
    for line, facts in zip(lines[1:], solvers.SOLVERS.values(), strict=False):
        assert line.split()[:2] == [facts.name, facts.basis] and line.endswith(f"  {facts.source}")
        assert f"  {', '.join(map(str, facts.orders))}  " in line and f" {facts.calls(10, True, {})}  " in line
    assert len(lines) == len(solvers.SOLVERS) + 3


@pytest.mark.parametrize("command", ["", "distill", "sample", "solvers"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(f"{command} --help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: python -m dode" in text and "default: None" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_examples_are_commands() -> None:
    """Those of the help, and those of the README."""
    examples = EXAMPLES + commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(examples) >= 9
    for example in examples:
        args = cli.parser().parse_args(shlex.split(example, comments=True)[3:])
        if hasattr(args, "solver") and args.nfe and args.checkpoint:
            cli.build(args, dode.load(args.checkpoint))


def test_the_first_two_examples_run(here: Path) -> None:
    """As they are typed, on fewer images."""
    for example, fewer in zip(EXAMPLES, ("--images 2 --scale 2", "--seeds 1000-1001"), strict=False):
        words = shlex.split(f"{example} {fewer}")
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("wrote d-ddim-5.") and "Traceback" not in done.stderr
    assert pixels(here / "d-ddim-5.png").shape == (1, 30, 59)
    words[words.index("--out") + 1] = "no.jpg"
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert sorted(p.name for p in here.iterdir()) == ["d-ddim-5.png", "d-ddim-5.safetensors"]


# --- what cannot be done -------------------------------------------------------------------------

DISTIL = f"distill --checkpoint {NOISE} --solver ddim --nfe 2 --images 1 --scale 2 --out o.safetensors"
FIT = f"distill --checkpoint {NOISE} --solver ddim --nfe 2 --images 4 --out o.safetensors"
BY_NAME = f"sample --checkpoint {NOISE} --solver ddim --nfe 2 --seeds 0 --out o.png"
STORED = "sample --solver d.safetensors --seeds 0 --out o.png"


@pytest.fixture
def files(here: Path) -> Path:
    """Files that are wrong in different ways, and one that is right."""
    table = solvers.ddim(dode.load(NOISE).grid, nfe=2)
    table.save("d.safetensors")
    (here / "cut.safetensors").write_bytes((here / "d.safetensors").read_bytes()[:-9])
    designed = distillation.begin_dlms(dode.load(NOISE), table, features=False)
    designed.save("designed.safetensors")
    replace(designed, metadata=dict(model=DATA)).save("designed-other.safetensors")
    (here / "designed-cut.safetensors").write_bytes((here / "designed.safetensors").read_bytes()[:-9])
    (here / "text.safetensors").write_text("hello")
    save_tensors(here / "images.safetensors", dict(x=torch.zeros(1)), "images", {})
    table.with_full(table.full, model=DATA).save("other.safetensors")
    table.with_full(table.full, model=NOISE, shape=[3, 32, 32]).save("shape.safetensors")
    table.with_full(table.full, model="mine").save("mine.safetensors")
    table.with_full(table.full * 1e36, model=NOISE).save("inf.safetensors")
    (here / "folder.png").mkdir()
    (here / "folder.safetensors").mkdir()
    return here


def refused(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, after a look at everything else."""
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    assert run(command) == 2
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    said = capsys.readouterr()
    assert said.out == ""
    *_, line = said.err.splitlines()  # a progress bar may come first, if the work had begun
    assert line.startswith("python -m dode: ") and "Traceback" not in said.err
    if "NFE/s" not in said.err:
        assert said.err == line + "\n"
    return line.removeprefix("python -m dode: ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the following arguments are required: distill | sample | solvers; see python -m dode --help"),
        ("train", "invalid choice: 'train'"),
        ("distill", "required: --solver, --nfe, --out; see python -m dode distill --help"),
        (f"{DISTIL} --nonsense 3", "unrecognized arguments: --nonsense 3"),
        (f"{DISTIL} --checkpoint fashion", f"no checkpoint named 'fashion'; the nearest: {DATA}, {NOISE}"),
        (
            f"{DISTIL} --checkpoint edm-cifar10-32x32-uncond",
            "no checkpoint named 'edm-cifar10-32x32-uncond'; the nearest: edm-cifar10-32x32-uncond-v",
        ),
        (f"{DISTIL} --checkpoint google/ddpm-cifar10-32", "google/ddpm-cifar10-32 is a pipeline of diffusers; take"),
        (f"{BY_NAME} --checkpoint google/ddpm-cifar10-32", "take --diffusers google/ddpm-cifar10-32 and no --checkp"),
        (f"{DISTIL} --checkpoint adm-imagenet-128@abc", "adm-imagenet-128@abc: 'abc' is no scale of a guidance; write"),
        (f"{DISTIL} --checkpoint adm-imagenet-128@nan", "'nan' is no scale of a guidance; write a number, as in adm"),
        (f"{DISTIL} --checkpoint edm-cifar10-32x32-uncond-vp@2", "no classifier is published with edm-cifar10-32x32-u"),
        (f"{DISTIL} --checkpoint adm-imagenet-256-uncond@9", "adm-imagenet-256-uncond is told no class; dode.publ"),
        (f"{DISTIL} --scale 1", "--scale 1: the teacher would take no more steps than the solver; take 2 or"),
        (f"{DISTIL} --checkpoint adm-imagenet@1.25", "no checkpoint named 'adm-imagenet@1.25'; the nearest: adm-i"),
        (f"{BY_NAME} --checkpoint google/ddpm-cifar10", "the nearest: google/ddpm-cifar10-32"),
        (f"{DISTIL} --checkpoint gone.safetensors", "gone.safetensors does not exist; check the path"),
        (f"{DISTIL} --checkpoint d.safetensors", "d.safetensors holds a tableau, not a network"),
        (f"{DISTIL} --solver euler", "no solver named 'euler'; there are: ddim, ipndm"),
        (f"{DISTIL} --order 2", "--order 2: ddim has one order alone; leave --order out"),
        (f"{DISTIL} --solver ddim:order=2", "'ddim:order=2': ddim has no option 'order=2'; it has basis"),
        (f"{DISTIL} --solver ipndm:order", "ipndm has no option 'order'; it has order"),
        (f"{DISTIL} --solver ipndm --order 5", "ipndm has orders 1 to 4, got 5"),
        (
            f"{DISTIL} --solver ipndm --order 3",
            "--order 3 needs 3 steps or more and --nfe 2 gives 2; take --order 2 or a larger --nfe",
        ),
        (
            f"{DISTIL} --solver ipndm:order=3",
            "--solver ipndm:order=3: order 3 needs 3 steps or more and --nfe 2 gives 2; take order 2 or a larger --nfe",
        ),
        (f"{BY_NAME} --solver ipndm --order 4", "--order 4 needs 4 steps or more and --nfe 2 gives 2; take --order 2"),
        (f"{DISTIL} --solver deis:schedule=linear", "deis has no option 'schedule=linear'; it has order"),
        (f"{DISTIL} --solver heun", "heun cannot make 2 calls on such a grid, try 1 or 3"),
        (f"{DISTIL} --nfe 0", "argument --nfe: '0' is not a whole number from 1 to 1,000,000"),
        (f"{DISTIL} --scale 1.5", "argument --scale: '1.5' is not a whole number"),
        (f"{DISTIL} --images -3", "argument --images: '-3' is not a whole number"),
        (f"{DISTIL} --batch-size 0", "argument --batch-size: '0' is not a whole number"),
        (f"{DISTIL} --seeds 3-1", "--seeds: 3-1 runs backwards; write 1-3"),
        (f"{DISTIL} --seeds 3..5", "--seeds: '3..5' is not of the form 0-99 or 0-9,20,30-39"),
        (f"{DISTIL} --seeds 0-9", "not allowed with argument"),
        (
            f"{DISTIL} --method gauss-newton",
            "--method gauss-newton has no use for --scale; leave it out",
        ),
        (f"{DISTIL} --method dlms", "--method dlms has no use for --scale; leave it out"),
        (f"{FIT} --method s4s-alt --trajectories 9", "--method s4s-alt has no use for --trajectories; leave it out"),
        (f"{FIT} --method gits --compare pixels", "--method gits has no use for --compare; leave it out"),
        (f"{FIT} --method ld3 --batch-size 9", "--method ld3 has no use for --batch-size; leave it out"),
        (f"{DISTIL} --compare features", "--method d-ode has no use for --compare; leave it out"),
        (f"{FIT} --method amed --equation 9", "--method amed has no use for --equation; leave it out"),
        (f"{FIT} --method s4s --first-step none", "--method s4s has no use for --first-step; leave it out"),
        (f"{DISTIL} --method gits --grid karras", "--method gits has no use for --grid; leave it out"),
        (f"{FIT} --method ld3 --images 3", "a fit needs four images or more, got 3"),
        (f"{FIT} --method amed --nfe 1", "AMED takes two calls a step, the first of which may be analytical; got 1"),
        *((f"{FIT} --method {name} --solver heun --nfe 3", "stays at a level") for name in ("dlms", "s4s")),
        (f"{FIT} --method dlms --trajectories 0", "argument --trajectories: '0' is not a whole number"),
        (f"{FIT} --method dlms --compare lpips", "argument --compare: invalid choice: 'lpips'"),
        (f"{DISTIL} --method gauss", "argument --method: invalid choice: 'gauss'"),
        (f"{DISTIL} --teacher heun", "argument --teacher: invalid choice: 'heun'"),
        (f"{DISTIL} --grid edm", "argument --grid: invalid choice: 'edm'"),
        (f"{DISTIL} --equation 7", "argument --equation: invalid choice: 7"),
        (f"{DISTIL} --out o.pt", "argument --out: 'o.pt' must end in .safetensors"),
        (f"{DISTIL} --out folder.safetensors", "folder.safetensors is a folder; name a file"),
        (f"{DISTIL} --out text.safetensors/o.safetensors", "text.safetensors is no folder that you may write in"),
        (f"{DISTIL} --out {'o' * 300}.safetensors", "File name too long"),
        (f"{BY_NAME} --seeds ''", "--seeds: '' is not of the form"),
        (f"{BY_NAME} --seeds 0-999999999999", "is more than 1,000,000 seeds; ask for fewer at a time"),
        (f"{BY_NAME} --out o.jpg", "argument --out: 'o.jpg' must end in .png, the one format there is"),
        (f"{BY_NAME} --out folder.png", "folder.png is a folder; name a file"),
        (f"{BY_NAME} --solver euler", "no solver named 'euler'"),
        (
            "sample --solver d-ddim-5 --seeds 0 --out o.png",
            "no solver named 'd-ddim-5'; the nearest: ddim, pndm; a solver file ends in .safetensors",
        ),
        (f"{BY_NAME} --solver x.pt", "no solver named 'x.pt'; the nearest: "),
        (
            "sample --solver unipc:variant=bh1 --seeds 0 --out o.png --nfe 3",
            "unipc:variant=bh1 is a name, not a file: it needs --nfe and --checkpoint or --diffusers",
        ),
        (STORED, "d.safetensors names no network; give one with --checkpoint"),
        (f"{STORED} --nfe 2", "d.safetensors is a finished solver; leave out --nfe, --order, --grid and --afs"),
        (f"{STORED} --afs", "d.safetensors is a finished solver"),
        (f"{STORED} --grid karras", "d.safetensors is a finished solver"),
        (
            f"{STORED} --solver designed.safetensors",
            "designed.safetensors names no network; give one with --checkpoint",
        ),
        (
            f"{STORED} --solver designed.safetensors --nfe 2",
            "designed.safetensors is a finished solver; leave out --nfe",
        ),
        (f"{STORED} --solver designed-cut.safetensors", "may be truncated: make it again"),
        (
            f"{STORED} --solver designed-other.safetensors --checkpoint {NOISE}",
            f"is for {DATA}, not {NOISE}; distil one for that",
        ),
        (f"{DISTIL} --checkpoint designed.safetensors", "holds a designed solver, not a network"),
        (f"{STORED} --solver gone.safetensors", "gone.safetensors does not exist; check the path"),
        (f"{STORED} --solver folder.safetensors", "folder.safetensors is a folder; name a file"),
        (f"{DISTIL} --checkpoint folder.safetensors", "folder.safetensors is a folder; name a file"),
        (f"{STORED} --solver cut.safetensors", "may be truncated: make it again"),
        (f"{STORED} --solver text.safetensors", "not a readable safetensors file"),
        (f"{STORED} --solver images.safetensors", "images.safetensors holds a images, not a tableau"),
        (
            f"{STORED} --solver mine.safetensors",
            "is for mine, which does not ship with dode; give one with --checkpoint",
        ),
        (
            f"{STORED} --solver other.safetensors --checkpoint {NOISE}",
            f"is for {DATA}, not {NOISE}; distil one for that",
        ),
        (f"{STORED} --solver shape.safetensors", "distilled for samples of shape (3, 32, 32), not (1, 28, 28)"),
        (f"{STORED} --solver inf.safetensors", "in step 1 at sigma"),
    ],
)
def test_one_line_says_what_is_wrong(
    command: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(command, files, capsys)


def test_the_critic_looks_only_at_what_it_knows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, facts = load_tensors(ROOT / f"dode/checkpoints/{NOISE}.safetensors", "network")
    save_tensors("mine.safetensors", tensors, "network", facts | dict(name="mine"))
    mine = f"{FIT} --checkpoint mine.safetensors --method s4s"
    wanted = "--compare features: no critic knows the images of mine; take --compare pixels"
    assert refused(f"{mine} --compare features", here, capsys) == wanted
    assert run(mine) == 0
    by_itself = Path("o.safetensors").read_bytes()
    assert run(f"{mine} --compare pixels") == 0 and Path("o.safetensors").read_bytes() == by_itself


def test_no_gpu(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (DISTIL, BY_NAME):
        assert "take --device cpu" in refused(f"{command} --device cuda", here, capsys)
    assert cli.load(NOISE, "auto").device.type == "cpu"


def test_a_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cli.zoo, "load", lambda name, device: device)
    assert [str(cli.load(NOISE, d)) for d in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def test_a_folder_that_may_not_be_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked before the work; the superuser may write anywhere, so the answer is put on."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot write o.png: . is no folder that you may write in" in refused(BY_NAME, here, capsys)


def raises(error: BaseException) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return call


def test_a_full_disk(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Image.Image, "save", raises(OSError(errno.ENOSPC, "No space left on device")))
    assert "No space left on device" in refused(BY_NAME, here, capsys)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("not enough memory: x")])
def test_full_memory(
    error: Exception, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "sample", raises(error))
    assert refused(BY_NAME, here, capsys) == "memory is full; take a smaller --batch-size, --nfe or --scale"


@pytest.mark.parametrize("what", ["sample", "picture"])
def test_ctrl_c_is_quiet(
    what: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, what, raises(KeyboardInterrupt()))
    assert run(BY_NAME) == 130
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err and not list(here.iterdir())


def test_a_bug_is_not_dressed_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "sample", raises(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(BY_NAME)
    assert not list(here.iterdir())
