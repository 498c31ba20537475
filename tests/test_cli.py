"""The command line: it does what the library does, and says in one line what it cannot do."""

from __future__ import annotations

import errno
import functools
import json
import re
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
from small import network_file, tiles

import dode
from dode import cli, distillation, solvers, zoo
from dode.cli import distill, methods, models, options
from dode.cli import sample as drawing
from dode.distillation import losses
from dode.distillation.problem import DistillerInfo
from dode.experiments import fits
from dode.experiments.run import grid_function
from dode.schedules import karras
from dode.utils.files import load_tensors, save_tensors
from dode.zoo.datasets import to_uint8

ROOT = Path(__file__).resolve().parents[1]
NOISE, DATA = "fashion-mnist-noise", "fashion-mnist-data"


def commands(text: str) -> list[str]:
    """The examples in a text, those on several lines too."""
    lines = (" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if re.match("dode (distill|sample|info) ", line) and ".safetensors" in line]


EXAMPLES = [
    command for text in (options.ABOUT, options.DISTILL, options.SAMPLE, options.INFO) for command in commands(text)
]


def run(command: str) -> int:
    return cli.main(shlex.split(command))


Networks = dict[str, Path]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The two networks in small, by the names they have."""
    folder = tmp_path_factory.mktemp("small")
    return {name: network_file(folder, name) for name in (NOISE, DATA)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- distill -------------------------------------------------------------------------------------


def plain(small: Networks, **options: Any) -> dode.Tableau:
    model = dode.load(small[NOISE])
    noise = dode.initial_noise(model.shape, range(2))
    return distillation.d_ode(model, solvers.ddim, noise, nfe=3, scale=2, seeds=range(2), **options)


def every_option(small: Networks) -> dode.Tableau:
    model, seeds = dode.load(small[NOISE]), [5, 6, 9]
    same = functools.partial(solvers.deis, order=2, variable="rho")
    table = same(grid_function("Karras", model), nfe=3, afs=True)
    return distillation.d_ode(
        model, table, dode.initial_noise(model.shape, seeds), teacher=same, scale=2, align="index", first_step="none",
        equation=9, basis="own", batch_size=2, seeds=seeds,
    )  # fmt: skip


def by_gits(small: Networks) -> dode.Tableau:
    model = dode.load(small[DATA])
    return distillation.gits(
        model, solvers.ipndm, dode.initial_noise(model.shape, range(2)), nfe=3, points=20, seeds=range(2)
    )


def by_amed(small: Networks) -> distillation.Designed:
    model, noise = dode.load(small[DATA]), dode.initial_noise((1, 28, 28), range(5, 9))
    return distillation.amed(model, solvers.ddim, noise, nfe=2, seeds=range(5, 9), trajectories=32, features=False)


@pytest.mark.parametrize(
    ("options", "library"),
    [
        (f"{DATA} --solver ipndm --nfe 3 --images 2 --method gits --points 20", by_gits),
        (f"{DATA} --solver ddim --nfe 2 --seeds 5-8 --method amed --trajectories 32 --no-features", by_amed),
        (f"{NOISE} --solver ddim --nfe 3 --images 2 --scale 2 --device cpu", plain),
        (
            f"{NOISE} --solver ddim --nfe 3 --images 2 --scale 2 --align released",
            functools.partial(plain, align="released"),
        ),
        (
            f"{NOISE} --solver deis:variable=rho --order 2 --nfe 3 --grid karras --afs --seeds 5-6,9 --teacher same "
            "--scale 2 --align index --first-step none --equation 9 --basis own --batch-size 2 --method d-ode",
            every_option,
        ),
    ],
)
def test_the_file_is_the_one_the_library_makes(
    options: str, library: Callable[[Networks], dode.Tableau | distillation.Designed], small: Networks, here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint = small[NOISE if options.startswith(NOISE) else DATA]
    assert run(f"distill --checkpoint {checkpoint} {options.partition(' ')[2]} --out new/d.safetensors") == 0
    table = library(small)
    assert Path("new/d.safetensors").read_bytes() == table.save("library.safetensors").read_bytes()
    said, facts = capsys.readouterr(), table.metadata
    assert ("100%|" in said.err) == (facts["method"] != "gits")  # which takes seconds
    wrote, outcome, sample = said.out.splitlines()
    assert wrote == (
        f"wrote new/d.safetensors: {facts['solver']}, NFE {table.nfe}; "
        f"{facts['network_evaluations']:,} network evaluations"
    )
    numbers = {"gits": "80", "amed": f"{min(facts.get('cost', [0])):.4g}"}
    assert f" {numbers.get(facts['method']) or format(facts['fit_rmse'][-1], '.4f')} " in outcome
    assert run(f"{sample.removeprefix('sample with it: dode ')} --seeds 1000") == 0 and Path("new/d.png").is_file()


@pytest.mark.parametrize("compare", ["auto", "pixels", "own"])
@pytest.mark.parametrize("name", [name for name, method in distillation.DISTILLERS.items() if method.loss])
def test_a_method_is_given_what_the_options_say(
    name: str, compare: str, small: Networks, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as from Python, which the test before shows to lead to the same file."""
    given = list[distillation.Problem]()
    table = solvers.ddim(karras(2, 0.1, 10))
    monkeypatch.setattr(DistillerInfo, "fit", lambda self, problem: (given.append(problem), labelled)[1])
    labelled = table.with_full(table.full, cost=[2.0, 1.0], network_evaluations=7)
    grid = "" if distillation.DISTILLERS[name].grid is None else "--grid karras"
    options = f"--solver deis:variable=log_rho,basis=data --nfe 2 --afs --seeds 5-8 --compare {compare} {grid}"
    assert run(f"distill --checkpoint {small[DATA]} {options} --method {name} --out d.safetensors") == 0
    (problem,), model = given, dode.load(small[DATA])
    make = functools.partial(solvers.deis, variable="log_rho", basis="data", afs=True)
    start = make(grid_function("Karras", model) if grid else model.grid, nfe=2)
    assert torch.equal(problem.table.full, start.full) and problem.seeds == [5, 6, 7, 8] and problem.progress
    assert torch.equal(problem.make(start.sigmas).full, start.full) and problem.batch_size == 100
    assert torch.equal(problem.noise, dode.initial_noise(model.shape, range(5, 9)))
    kind = distillation.DISTILLERS[name].loss if compare == "auto" else compare
    found, wanted = (losses.bound(r, model, problem.noise) for r in (problem.residual, fits.loss(model, kind)))
    assert torch.equal(found(problem.noise), wanted(problem.noise))


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


def test_the_picture_holds_the_librarys_samples(
    small: Networks, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = dode.load(NOISE)
    table = plain(small)
    table.save("d.safetensors")
    assert run("sample --solver d.safetensors --seeds 7-9,4,5 --columns 3 --batch-size 4 --out deep/er/d.png") == 0
    said = capsys.readouterr()
    assert said.out == "wrote deep/er/d.png: 5 images by d-ddim, NFE 3\n" and "sampling: 100%|" in said.err
    images = dode.sample(model, table, dode.initial_noise(model.shape, [7, 8, 9, 4, 5]), batch_size=4)
    with Image.open("deep/er/d.png") as sheet:
        assert sheet.size == (3 * 29 + 1, 2 * 29 + 1)
    found = tiles(here / "deep/er/d.png")
    assert torch.equal(found[:5], to_uint8(images)) and (found[5] == 255).all()
    assert [p.name for p in (here / "deep/er").iterdir()] == ["d.png"]


def test_a_solver_by_its_name(here: Path) -> None:
    model = dode.load(DATA)
    options = f"--checkpoint {DATA} --nfe 2 --grid log_snr --order 2 --seeds 3-4"
    assert run(f"sample --solver unipc:variant=bh1 {options} --out a.png") == 0
    table = solvers.unipc(grid_function("log SNR", model), nfe=2, order=2, variant="bh1")
    images = dode.sample(model, table, dode.initial_noise(model.shape, [3, 4]))
    assert torch.equal(tiles(here / "a.png"), to_uint8(images))  # two columns, not eight


# --- what is said --------------------------------------------------------------------------------


def test_every_solver_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("solvers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["solver", "basis", "orders", "NFE", "source"]
    for line, facts in zip(lines[1:], solvers.SOLVERS.values(), strict=False):
        assert line.split()[:2] == [facts.name, facts.basis] and line.endswith(f"  {facts.source}")
        assert f"  {', '.join(map(str, facts.orders))}  " in line and f" {facts.calls(10, True, {})}  " in line
    assert len(lines) == len(solvers.SOLVERS) + 3


@pytest.mark.parametrize("command", ["", "distill", "sample", "solvers", "info", "train"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(f"{command} --help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: dode" in text and "default: None" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_names_in_the_help_are_those_of_the_registries() -> None:
    """What is read from the files of distillers without running them is what running them registers."""
    assert sorted(options.CHECKPOINTS) == sorted(zoo.NAMES) and list(options.GRIDS) == list(distill.GRIDS)
    assert list(methods.methods()) == list(distillation.DISTILLERS)
    for name, method in methods.methods().items():
        info = distillation.DISTILLERS[name]
        assert method.facts.items() <= vars(info).items()
        assert all(fact in method.facts for fact in ("loss", "grid") if getattr(info, fact) is None)
        typed = {k: v for k, v in info.options.items() if k not in ("levels", "space")}
        assert {k: option["default"] for k, option in method.options.items()} == typed
        assert method.about and not method.about.endswith(".")


@pytest.mark.slow
def test_nothing_heavy_is_imported_for_help_or_a_wrong_argument() -> None:
    words = "--help|train --help|--version|distil|distill --help|distill --nfe 0|sample --solver|info|solvers x"
    program = f"""
import sys
from dode.cli import main
for command in {words!r}.split("|"):
    try:
        assert main(command.split()) == 2
    except SystemExit as stop:
        assert stop.code == 0
print(*sorted({{"torch", "numpy", "safetensors", "diffusers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n\n") and f"dode {dode.__version__}\n" in done.stdout
    assert done.stderr.count("dode: ") == 5 == done.stderr.count("\n")


def test_the_examples_are_commands() -> None:
    """Those of the help, and those of the README."""
    examples = EXAMPLES + commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(examples) >= 10 and any("--diffusers" in example for example in examples)
    for example in examples:
        args = options.parser().parse_args(shlex.split(example, comments=True)[1:])
        if hasattr(args, "solver") and args.nfe and args.checkpoint:
            distill.build(args, dode.load(args.checkpoint))


@pytest.mark.slow
def test_the_first_two_examples_run(here: Path) -> None:
    """As they are typed, on fewer images, the first in a process of its own; and so is what is refused."""
    process = functools.partial(subprocess.run, capture_output=True, text=True, timeout=300)
    first, second = EXAMPLES[0] + " --images 2 --scale 2", EXAMPLES[1] + " --seeds 1000-1001"
    done = process([sys.executable, "-m", *shlex.split(first)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote d-ddim-5.safetensors") and "Traceback" not in done.stderr
    assert run(second.removeprefix("dode ")) == 0
    assert tiles(here / "d-ddim-5.png").shape == (2, 1, 28, 28)
    done = process([sys.executable, "-m", *shlex.split(f"{second} --out no.jpg")])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert sorted(p.name for p in here.iterdir()) == ["d-ddim-5.png", "d-ddim-5.safetensors"]


# --- info ----------------------------------------------------------------------------------------


def test_info_shows_a_table(small: Networks, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number of it, in four digits, and what is known of its fit."""
    table = every_option(small)
    table.save("d.safetensors")
    assert run("info d.safetensors") == 0
    first, _, *facts = capsys.readouterr().out.splitlines()
    assert first == "d.safetensors: d-deis, 3 network evaluations (NFE)"
    end = facts.index("")
    said = {line[:16].strip(): line[16:] for line in facts[:end]}
    assert (said["method"], said["seeds"]) == ("d-ode", "5-6, 9") and said["checkpoint"].startswith(NOISE)
    assert said["noise levels"].split() == [f"{level:.4g}" for level in table.levels]
    about, _, *rows, last = facts[end + 1 :]
    assert float(last.split()[1]) == pytest.approx(float(table.sigmas[-1]), rel=1e-3)
    for i, row in enumerate(rows):
        sigma, sigma_in, *weights = map(float, row.split()[1:])
        start = [weights.pop()] if "noise:" in about else [0.0]
        assert [sigma, sigma_in, *start] == pytest.approx(
            [float(t[i]) for t in (table.sigmas, table.sigmas_in, table.noise_weights)], rel=1e-3
        )
        assert weights[::-1] == pytest.approx(table.weights[i, i + 1 - len(weights) : i + 1].tolist(), rel=1e-3)
        assert not table.weights[i, : i + 1 - len(weights)].abs().gt(1e-12).any()
    assert run("info d.safetensors --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert dode.Tableau(
        *(found[k] for k in ("basis", "sigmas", "weights", "start", "sigmas_in")), metadata=found["metadata"]
    ).save("again.safetensors").read_bytes() == Path("d.safetensors").read_bytes()  # fmt: skip


def test_info_shows_a_designed_solver(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = dode.load(DATA)
    solver = distillation.begin_dlms(model, solvers.ddim(model.grid, nfe=3, basis="data", afs=True))
    replace(solver, metadata=dict(solver="dlms-ddim", method="dlms", check_seeds=[3, 4, 5])).save("s.safetensors")
    assert run("info s.safetensors") == 0
    said = capsys.readouterr().out
    count = sum(weight.numel() for weight in solver.designer.parameters())
    assert f"A network of {count:,} parameters predicts each step." in said and "held-out seeds  3-5\n" in said
    assert run("info s.safetensors --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["parameters"], found["nfe"]) == ("DLMS", count, 3)


# --- what cannot be done -------------------------------------------------------------------------

DISTIL = f"distill --checkpoint {NOISE} --solver ddim --nfe 2 --images 1 --scale 2 --out o.safetensors"
FIT = f"distill --checkpoint {NOISE} --solver ddim --nfe 2 --images 4 --out o.safetensors"
BY_NAME = f"sample --checkpoint {NOISE} --solver ddim --nfe 2 --seeds 0 --out o.png"
STORED = "sample --solver d.safetensors --seeds 0 --out o.png"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that are wrong in different ways, and one that is right."""
    here = tmp_path_factory.mktemp("wrong")
    table = solvers.ddim(dode.load(NOISE).grid, nfe=2)
    table.save(here / "d.safetensors")
    (here / "cut.safetensors").write_bytes((here / "d.safetensors").read_bytes()[:-9])
    (here / "text.safetensors").write_text("hello")
    save_tensors(here / "lacking.safetensors", dict(x=torch.zeros(1)), "designed solver", {})
    table.with_full(table.full, model=DATA).save(here / "other.safetensors")
    table.with_full(table.full, model="mine").save(here / "mine.safetensors")
    table.with_full(table.full * 1e36, model=NOISE).save(here / "inf.safetensors")
    (here / "folder.png").mkdir()
    (here / "folder.safetensors").mkdir()
    return here


@pytest.fixture
def files(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wrong files, as the one we are in; :func:`refused` sees that it stays as it is."""
    monkeypatch.chdir(wrong)
    return wrong


def refused(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line, after a look at everything else."""
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    assert run(command) == 2
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    said = capsys.readouterr()
    assert said.out == ""
    *_, line = said.err.splitlines()  # a progress bar may come first, if the work had begun
    assert line.startswith("dode: ") and "Traceback" not in said.err
    if "NFE/s" not in said.err:
        assert said.err == line + "\n"
    return line.removeprefix("dode: ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the following arguments are required: distill | sample | solvers | info | run | train; see dode --help"),
        (f"{DISTIL} --nonsense 3", "unrecognized arguments: --nonsense 3"),
        (f"{DISTIL} --checkpoint fashion", f"no checkpoint named 'fashion'; the nearest: {DATA}, {NOISE}"),
        (f"{DISTIL} --checkpoint google/ddpm-cifar10-32", "google/ddpm-cifar10-32 is a pipeline of diffusers; take"),
        (f"{DISTIL} --checkpoint d.safetensors", "d.safetensors holds a tableau, not a network"),
        (f"{DISTIL} --order 2", "--order 2: ddim has only one order; leave --order out"),
        (f"{DISTIL} --solver ipndm --order 3", "--order 3 needs 3 steps or more and --nfe 2 gives 2; take --order 2"),
        (f"{DISTIL} --solver heun", "heun cannot make 2 calls on such a grid, try 1 or 3"),
        (f"{DISTIL} --nfe 0", "argument --nfe: '0' is not a whole number from 1 to 1,000,000"),
        (f"{DISTIL} --seeds 3-1", "--seeds: 3-1 runs backwards; write 1-3"),
        (f"{DISTIL} --seeds 3..5", "--seeds: '3..5' is not of the form 0-99 or 0-9,20,30-39"),
        (f"{DISTIL} --method gauss-newton", "--method gauss-newton has no option --scale; leave it out"),
        (f"{FIT} --method gits --compare pixels", "--method gits has no option --compare; leave it out"),
        (f"{FIT} --method gits --grid karras", "--method gits has no option --grid; leave it out"),
        (f"{FIT} --method ld3 --images 3", "a fit needs four images or more, got 3"),
        (f"{DISTIL} --out o.pt", "argument --out: 'o.pt' must end in .safetensors"),
        (f"{DISTIL} --out folder.safetensors", "folder.safetensors is a folder; name a file"),
        (f"{DISTIL} --out text.safetensors/o.safetensors", "text.safetensors is not a folder that you may write in"),
        (f"{DISTIL} --out {'o' * 300}.safetensors", "File name too long"),
        (f"{BY_NAME} --seeds 0-999999999999", "is more than 1,000,000 seeds; ask for fewer at a time"),
        (f"{STORED} --solver d-ddim-5", "no solver named 'd-ddim-5'; the nearest: ddim, pndm; a solver file ends in ."),
        (f"{STORED} --solver unipc:variant=bh1", "unipc:variant=bh1 is a name, not a file: it needs --nfe and --check"),
        (STORED, "d.safetensors names no network; give one with --checkpoint"),
        (f"{STORED} --nfe 2", "d.safetensors is a finished solver; leave out --nfe, --order, --grid and --afs"),
        (f"{STORED} --solver cut.safetensors", "may be truncated: make it again"),
        (f"{STORED} --solver mine.safetensors", "is for mine, which does not ship with dode; give one with --check"),
        (f"{STORED} --solver other.safetensors --checkpoint {NOISE}", f"is for {DATA}, not {NOISE}; distil one for"),
        ("info lacking.safetensors", "lacking.safetensors does not hold a valid designed solver"),
        (f"{STORED} --solver inf.safetensors", "in step 1 at sigma"),
    ],
)
def test_one_line_says_what_is_wrong(
    command: str, message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(command, files, capsys)


@pytest.mark.slow
def test_the_critic_looks_only_at_what_it_knows(
    small: Networks, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, facts = load_tensors(small[NOISE], "network")
    save_tensors("mine.safetensors", tensors, "network", facts | dict(name="mine"))
    mine = f"{FIT} --checkpoint mine.safetensors --method s4s"
    wanted = "--compare features: no feature extractor knows the images of mine; take --compare own or pixels"
    assert refused(f"{mine} --compare features", here, capsys) == wanted
    assert run(mine) == 0
    by_itself = Path("o.safetensors").read_bytes()
    assert run(f"{mine} --compare pixels") == 0 and Path("o.safetensors").read_bytes() == by_itself


def test_no_gpu(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in (DISTIL, BY_NAME):
        assert "take --device cpu" in refused(f"{command} --device cuda", here, capsys)
    assert models.choose_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [models.choose_device(d) for d in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


def raises(error: BaseException) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return call


MEMORY = "memory is full; take a smaller --batch-size, --nfe or --scale"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory."), MEMORY),
        (RuntimeError("not enough memory: x"), MEMORY),
    ],
)
def test_a_full_disk_and_a_full_memory(
    error: Exception, message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(*(Image.Image, "save") if isinstance(error, OSError) else (drawing, "sample"), raises(error))
    assert message in refused(BY_NAME, here, capsys)


@pytest.mark.parametrize("what", ["sample", "picture"])
def test_ctrl_c_is_quiet(
    what: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawing, what, raises(KeyboardInterrupt()))
    assert run(BY_NAME) == 130
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err and not list(here.iterdir())


def test_a_bug_is_not_dressed_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "sample", raises(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run(BY_NAME)
    assert not list(here.iterdir())
