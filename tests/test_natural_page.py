"""The page "Natural images": what it says, held to the committed rows."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from told import page

from dode import zoo
from dode.experiments import learned, plans

RESULTS = Path(__file__).parents[1] / "results"
BOOK = RESULTS.parent / "book" / "natural.ipynb"
DATA, NOISE = "imagenet32-data", "imagenet32-noise"
CELLS = [(name, nfe) for name in (DATA, NOISE) for nfe in (3, 5, 10)]
OURS = "gauss-newton"


def rows(file: str) -> pd.DataFrame:
    found = pd.read_csv(RESULTS / f"{file}.standard.csv")
    return found[found.checkpoint.isin([DATA, NOISE]) & (found.n == 2_000)]


def ends(values: pd.Series, digits: int = 2) -> str:
    return f"{values.min():.{digits}f} to {values.max():.{digits}f}"


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    """Distances to the long run: a line for each network, NFE and block, a column a method."""
    found = rows("learned").set_index(["checkpoint", "nfe", "block", "method"]).fd_reference.unstack()
    assert len(found) == 18 and not found.isna().any(axis=None)
    return found


def test_the_second_order_fit_leads(reference: pd.DataFrame) -> None:
    crafted = reference[list(learned.HANDCRAFTED)].min(axis=1)
    gain = (reference[OURS] / crafted).groupby(["checkpoint", "nfe"]).agg(["min", "max"])
    told = {cell: ends(gain.loc[cell]) for cell in CELLS}
    words = "it has {} of the best handcrafted distance with 3 calls, {} with 5 and {} with 10, "
    words += "on the noise-predicting one {}, {} and {}, on three blocks"
    assert words.format(*(told[cell] for cell in CELLS)) in page("natural")
    assert (reference[OURS].xs(3, level="nfe") < crafted.xs(5, level="nfe")).all()
    assert (reference.idxmin(axis=1) == OURS).all()
    found = rows("learned")
    first = found[found.block == 0].set_index(["checkpoint", "nfe", "method"])
    nearest = {measure: first[measure].unstack().idxmin(axis=1) for measure in ("rmse", "fd_data")}
    assert (nearest["rmse"] == OURS).all() and len(nearest["rmse"]) == 6
    others = {cell: method for cell, method in nearest["fd_data"].items() if method != OURS}
    assert others == {(DATA, 10): "unipc", (NOISE, 10): "d-ode"}
    each = found[found.nfe == 10].set_index(["checkpoint", "block", "method"]).fd_data.unstack().idxmin(axis=1)
    assert (each[DATA] == "unipc").all() and (each[NOISE] == "d-ode").all() and len(each) == 6
    near = first.fd_data[DATA, 5, OURS]
    drawn = rows("natural").set_index(["checkpoint", "solver", "variant", "nfe"]).fd
    assert f"as DDIM with 50 ({near:.2f} and {drawn[DATA, 'ddim', 'plain', 50]:.2f})" in page("natural")
    spent = found[found.method == OURS].evaluations / 1000
    assert f"A fit takes {spent.min():.0f} to {spent.max():.0f} thousand evaluations" in page("natural")


def test_what_d_ddim_is_worth(reference: pd.DataFrame) -> None:
    drawn = rows("natural").set_index(["solver", "checkpoint", "nfe", "variant"]).fd.loc["ddim"].unstack()
    ratio = drawn["d-ode"] / drawn.plain
    for words, name in (
        (
            "distance to the training images is {:.2f}, {:.2f}, {:.2f}, {:.2f} and {:.2f} of DDIM's on the same grid",
            DATA,
        ),
        ("On the noise-predicting network it is {:.2f}, {:.2f}, {:.2f}, {:.2f} and {:.2f}, so from 25", NOISE),
    ):
        assert words.format(*ratio[name][[2, 5, 10, 25, 50]]) in page("natural")
    assert [nfe for nfe, v in ratio[NOISE].sort_index().items() if v > 1] == [25, 50]
    plain = drawn.plain[NOISE]
    assert plain.idxmin() == 25
    assert f"nearest there with 25 calls, not with 50 ({plain[25]:.2f} and {plain[50]:.2f})" in page("natural")
    first = reference.xs(0, level="block")
    assert (first["d-ode"] > first[list(learned.HANDCRAFTED)].min(axis=1)).all()
    assert (first["d-ode"] > first.ddim)[NOISE].all()
    behind = first.loc[(NOISE, 5)]
    assert f"{behind['d-ode']:.1f} to {behind.ddim:.1f} with 5 calls, on the same grid" in page("natural")
    found = rows("learned").set_index(["checkpoint", "nfe", "method", "block"])
    assert found.grid[NOISE, 5, "ddim", 0] == "time"  # D-DDIM's
    each = [found.rmse[NOISE, 5, method, 0] for method in ("d-ode", "ddim")]
    assert "({:.3f} to {:.3f})".format(*each) in page("natural")


def test_which_solvers_gain_by_distillation() -> None:
    key = ["checkpoint", "solver", "nfe", "variant"]
    fd = rows("natural").set_index(key).fd.unstack()
    ratio = fd["d-ode"] / fd.plain
    first = {solver: ratio[NOISE, solver] for solver in plans.FOUR if solver != "ddim"}
    assert f"have {ends(pd.concat(first))} of the distance" in page("natural")
    assert all((ratio[NOISE, solver][[5, 10]] < 1).all() for solver in plans.FOUR)
    assert "and so is EDM on the other ({:.2f} and {:.2f})".format(*ratio[DATA, "heun"]) in page("natural")
    later = pd.concat({solver: ratio[NOISE, solver] for solver in plans.LATER})
    assert f"gain there too ({ends(later)})" in page("natural")
    garments = pd.read_csv(RESULTS / "figure_3.standard.csv").groupby(["solver", "nfe", "variant"]).fd.mean().unstack()
    assert all((garments["d-ode"] > garments.plain)[solver][[5, 10]].all() for solver in ("dpm_solver_pp", "unipc"))
    two, three, unipc = (ratio[DATA, solver] for solver in plans.LATER)
    words = "(2M) loses with 5 and with 10 calls ({:.2f} and {:.2f}), and (3M) with 5 ({:.2f}); "
    words += "UniPC-3 gains ({:.2f} and {:.2f})."
    assert words.format(*two, three[5], *unipc) in page("natural")
    assert (ratio.drop(index="ddim", level="solver") > 1).sum() == 3  # nobody else
    pixels = pd.read_csv(RESULTS / "natural_pixels.standard.csv").set_index(key)
    near, taught = pixels.rmse.unstack(), pixels.rmse_teacher.unstack()
    end = near["d-ode"] / near.plain
    assert "from the long run's as well ({:.2f} and {:.2f})".format(*end[DATA, plans.LATER[0]]) in page("natural")
    assert f"for its images are nearer ({end[DATA, plans.LATER[1], 5]:.2f})" in page("natural")
    assert (taught["d-ode"] > taught.plain)[DATA, plans.LATER[0]].all()  # greed
    distilled = fd["d-ode"][NOISE].unstack("nfe")
    assert len(distilled) == 7
    words = f"are at {ends(distilled[5], 1)} with 5 calls and at {ends(distilled[10], 1)} with 10, since all have one"
    assert words in page("natural")
    long = re.search(r"noise: the long run is (\S+) from the training images", BOOK.read_text(encoding="utf-8"))
    assert long and f"(The long run itself is at {long[1]} there" in page("natural")


def test_which_handcrafted_solver_is_best(reference: pd.DataFrame) -> None:
    best = reference.xs(0, level="block")[list(learned.HANDCRAFTED)].idxmin(axis=1)
    assert [best[cell] for cell in CELLS] == ["ipndm"] * 3 + ["dpm_solver_pp", "ddim", "deis"]
    assert (reference.start > 2 * reference[list(learned.HANDCRAFTED)].min(axis=1)).all()


def test_a_table_made_for_garments(reference: pd.DataFrame) -> None:
    first = reference.xs(0, level="block")
    moved = rows("transfer").set_index(["checkpoint", "nfe", "method"]).fd_reference.unstack()[OURS]
    assert f"({ends(moved / first.start)} of its distance)" in page("natural")
    assert (moved > first[list(learned.HANDCRAFTED)].min(axis=1)).sum() == 4
    apart = (moved / first[OURS]).groupby("nfe").agg(["min", "max"])
    told = [ends(apart.loc[nfe], 1) for nfe in (3, 5, 10)]
    words = "{} times as far as the table made for the network that samples with 3 calls, {} with 5 and {} with 10."
    assert words.format(*told) in page("natural")


def test_the_rows_are_of_the_networks_that_ship() -> None:
    for file, n in (("natural", "2000"), ("natural_pixels", "32")):
        found = pd.read_csv(RESULTS / f"{file}.standard.csv", dtype=str)
        assert set(found.checkpoint) == {DATA, NOISE} and set(found.n) == {n}
        assert set(zip(found.checkpoint, found.weights, strict=True)) == {(k, zoo.digest(k)) for k in (DATA, NOISE)}
    found = pd.read_csv(RESULTS / "natural.standard.csv", dtype=str)
    assert all(features.startswith("imagenet32-classifier-") for features in found.features)
    for word, rest in found.groupby(["checkpoint", "solver", "variant"]):
        few = [5, 9 if "heun" in word else 10]
        assert sorted(map(int, rest.nfe)) == ([2, *few, 25, 50] if "ddim" in word else few), word
