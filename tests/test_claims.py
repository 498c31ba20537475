"""What the pages claim, held to the committed rows: a claim is a sentence and an expression over ``results/*.csv``.

Numbers reach the pages from these rows and need no test; that "A is nearer than B" is still so after a new run does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
import pytest

from book import pages
from dode import zoo
from dode.experiments import claims as papers
from dode.experiments import galaxies as module
from dode.experiments import plans
from dode.experiments.dlms_study import (
    ABLATION,
    CROSSED,
    ENDS,
    GAUSS_NEWTON,
    LOSSES,
    NFES,
    OPTIMISERS,
    UNRELAXED,
    again,
    fitted,
    trained,
)
from dode.experiments.learned import HANDCRAFTED, asked
from dode.experiments.morphology import QUANTITIES
from dode.experiments.variants import OWN

RESULTS = pages.ROOT / "results"
COMMITTED = sorted(path.name.split(".")[0] for path in RESULTS.glob("*.standard.csv"))
GN, NETS, PP = "gauss-newton", ("noise", "data"), "dpm_solver_pp"
DATA = "fashion-mnist-data"
CRAFTED = tuple(module.HANDCRAFTED.values())
WHOLE = ["Gauss-Newton, AFS", "DLMS, last image"]  # of galaxies: learned solvers of the whole table
STAGES = ("dpm_solver:order=2", "heun")


@functools.cache
def rows(name: str) -> pd.DataFrame:
    """A committed file; ``net`` is what its network predicts."""
    found = pd.read_csv(RESULTS / f"{name}.standard.csv", dtype={"weights": str})
    return found.assign(net=found.checkpoint.str.rpartition("-")[2], data=found.checkpoint.str.rpartition("-")[0])


@functools.cache
def fd(name: str, of: str = "mean", value: str = "fd") -> pd.DataFrame:
    """Line: network, solver, NFE; column: variant.  The mean (or ``of`` else) of the blocks."""
    return rows(name).groupby(["net", "solver", "nfe", "variant"])[value].agg(of).unstack()


@functools.cache
def worth(name: str, value: str = "fd", variant: str = "d-ode") -> pd.Series:
    """Distance of the distilled solver over that of the plain one."""
    found = fd(name, value=value)
    return (found[variant] / found.plain).dropna()


def wins(name: str, net: str, solver: str, *nfes: int) -> bool:
    """Whether the distilled solver is nearer in every block."""
    return all(fd(name, "max")["d-ode"][net, solver, n] < fd(name, "min").plain[net, solver, n] for n in nfes)


@functools.cache
def learned(value: str = "fd_reference", images: str = "fashion-mnist", block: int = 0) -> pd.DataFrame:
    """Line: network, NFE; column: method, all that were run."""
    found = rows("learned").query("data == @images and block == @block")
    return found.pivot(index=["net", "nfe"], columns="method", values=value)


@functools.cache
def galaxies(value: str) -> dict[str, pd.DataFrame]:
    """Of each network: line, a solver as pages call it, on its better grid; column, NFE."""
    found = rows("galaxies").fillna({"grid": ""}).assign(title=lambda t: t.solver.map(module.TITLES))
    cells = ["checkpoint", "title", "solver", "nfe", "grid"]
    found = found.groupby(cells)[["rmse", "flux_error"]].mean().reset_index()
    found = found.loc[found.groupby(["checkpoint", "title", "nfe"]).rmse.idxmin()]
    groups = found.groupby(found.checkpoint.str.removeprefix("galaxies-"))
    return {name: part.pivot(index="title", columns="nfe", values=value) for name, part in groups}


def shapes(distribution: bool) -> pd.DataFrame:
    """Line: a quantity of morphology; column: solver.  Of an image or of the distribution, mean over blocks."""
    found = rows("morphology").assign(title=rows("morphology").solver.map(module.TITLES)).groupby("title")
    return found[[name + "_distance" * distribution for name in QUANTITIES]].mean().T


def floor_of_shapes() -> pd.Series:
    """Of the distributions, by quantity."""
    return rows("morphology_floor").iloc[0][[f"{name}_distance" for name in QUANTITIES]].astype(float)


def losses() -> list[pd.DataFrame]:
    """Distances in the classifier and in the transformer.  Line: network, NFE, fit; column: loss."""
    columns = ("fd_reference", "fd_reference_transformer")
    return [rows("loss_study").pivot(index=["net", "nfe", "fit"], columns="loss", values=v) for v in columns]


@functools.cache
def caused(value: str) -> pd.DataFrame:
    """Line: network, solver; column: how its numbers were fitted."""
    return rows("causes").pivot(index=["net", "solver"], columns="variant", values=value)


@functools.cache
def studied(value: str = "fd_reference") -> pd.DataFrame:
    """Line: network, NFE; column: training or solver."""
    return rows("dlms_study").pivot(index=["checkpoint", "nfe"], columns="method", values=value)


def behind_d_ddim() -> pd.Series:
    """Whether distillation loses, of each solver that is farther plain than D-DDIM with as many evaluations."""
    found = pd.concat([fd("figure_3"), fd("figure_4")]).loc[lambda t: ~t.index.duplicated()].dropna(subset="d-ode")
    distilled = found["d-ode"].xs("ddim", level="solver")
    others = [(n, s, k) for n, s, k in found.index if s != "ddim" and k >= 5]
    near = {at: distilled.get((at[0], at[2] + (at[1] == "heun" and at[2] in (9, 49)))) for at in others}
    return pd.Series({at: found["d-ode"][at] >= found.plain[at] for at in others if near[at] < found.plain[at]})


def once_ablated(net: str, solver: str, nfe: int, change: str) -> float:
    """The distance of a changed fit over the usual one's, in the first block of seeds."""
    cell = rows("ablations").query("block == 0 and net == @net and solver == @solver and nfe == @nfe")
    of = cell.set_index("variant").fd
    return float(of[f"d-ode:{change}"] / of["d-ode"])


def followed(value: str) -> pd.DataFrame:
    """Of figure 5, line: network, solver; column: variant."""
    return rows("figure_5").pivot(index=["net", "solver"], columns="variant", values=value)


@functools.cache
def distilled_galaxies() -> pd.DataFrame:
    """RMSE of each distilled solver over its plain one's, both on the better of two grids; line: NFE."""
    found = rows("galaxies").query("checkpoint == @module.FIRST and block == 0")
    of = lambda titles: (  # noqa: E731
        found[found.solver.isin(titles)]
        .assign(title=found.solver.map(titles))
        .groupby(["nfe", "title"])
        .rmse.min()
        .unstack()
    )
    plain, fitted = of(module.HANDCRAFTED), of({k: v.removeprefix("D-") for k, v in module.DISTILLED.items()})
    return fitted / plain


def d_ddim_on_galaxies() -> pd.DataFrame:
    """RMSE with 5 evaluations of DDIM, of D-DDIM and of the best plain solver, each on its better grid."""
    found = rows("galaxies").query("nfe == 5").fillna({"grid": ""})
    least = (
        found.groupby(["checkpoint", "solver", "grid"]).rmse.mean().groupby(["checkpoint", "solver"]).min().unstack()
    )
    plain, fitted = least[[*module.HANDCRAFTED]].min(axis=1), least[[*module.D_DDIM]].min(axis=1)
    return pd.DataFrame(dict(ddim=least["ddim"], distilled=fitted, plain=plain))


def trained_often(value: str = "fd_reference") -> pd.DataFrame:
    """The NFEs with three trainings."""
    return studied(value).loc[lambda t: t.index.isin(NFES, level=1)]


def crossed(optimiser: str, nfe: int) -> list[float]:
    """Distances of each fit of one optimiser, of any loss."""
    words = [again(fitted(optimiser, loss), k) for loss in LOSSES for k in range(CROSSED[nfe])]
    return [float(studied()[word][DATA, nfe]) for word in words]


@functools.cache
def compared(value: str = "fd_reference") -> pd.DataFrame:
    """The methods that the book compares on both networks of Fashion-MNIST."""
    return learned(value)[asked("standard")[1]["fashion-mnist-data"]]


def gain(block: int = 0, images: str = "fashion-mnist") -> pd.DataFrame:
    """Each method's distance to the reference over that of the nearest handcrafted solver."""
    found = learned(images=images, block=block)
    return found.div(found[list(HANDCRAFTED)].min(axis=1), axis=0)


def best(name: str, nfe: int) -> pd.Series:
    """RMSE of each solver of the zoo on its best grid, with ``nfe`` evaluations or one less."""
    found = rows("solver_zoo").query("data == 'fashion-mnist' and net == @name and @nfe - 1 <= nfe <= @nfe")
    return found.groupby("solver").rmse.min()


def ablated(net: str, variant: str, solver: str = "ddim", of: str = "mean") -> float:
    return float(fd("ablations", of)[variant][net, solver, 5])


FOUR, LATER = plans.FOUR, plans.LATER
CLAIMS: list[tuple[str, str, Callable[[], object]]] = [
    ("figure_3", "the distance of each of the paper's four solvers falls at NFE 5 and 10, in every block",
     lambda: all(wins("figure_3", "noise", s, 5, 10) for s in FOUR)),
    ("figure_3", "DPM-Solver++(3M) and UniPC lose at NFE 3, 5 and 10",
     lambda: all(worth("figure_3")["noise", s, n] > 1 for s in (PP, "unipc") for n in (3, 5, 10))),
    ("figure_3", "plain UniPC at NFE 5 is nearer than every distilled solver",
     lambda: fd("figure_3", "max").plain["noise", "unipc", 5]
             < fd("figure_3", "min")[["d-ode", OWN]].xs(5, level="nfe").drop("heun", level="solver").min().min()),
    ("figure_4", "D-DDIM is nearer than DDIM at NFE 5, 10 and 25 on both networks, in every block",
     lambda: all(wins("figure_4", net, "ddim", 5, 10, 25) for net in NETS)),
    ("figure_4", "D-EDM is nearer than EDM at NFE 5 and 9", lambda: wins("figure_4", "data", "heun", 5, 9)),
    ("figure_4", "plain DDIM is nearer at NFE 2",
     lambda: all(fd("figure_4", "max").plain[net, "ddim", 2] < fd("figure_4", "min")["d-ode"][net, "ddim", 2]
                 for net in NETS)),
    ("figure_4", "on galaxies iPNDM gains, DDIM from 4 on, and the others lose at every NFE",
     lambda: (t := distilled_galaxies()) is not None and (t["iPNDM"] < 1).all() and (t["DDIM"].loc[4:] < 1).all()
             and (t.drop(columns=["iPNDM", "DDIM"]) > 1).all(axis=None)),
    ("figure_4", "D-DDIM is nearer than DDIM on all networks of galaxies, and than every plain solver on two",
     lambda: (t := d_ddim_on_galaxies()) is not None and (t.distilled < t.ddim).all() and len(t) == 7
             and set(t.index[t.distilled < t.plain]) == {"galaxies-roman-120", "galaxies-quasar-72"}),
    ("figure_5", "only DPM-Solver++(2M) ends farther; the norm moves away from the reference's for three of eight",
     lambda: {s for (_, s), v in followed("rmse_end").iterrows() if v["d-ode"] > v.plain} == {f"{PP}:order=2"}
             and {s for (_, s), v in (followed("norm_ratio_end") - 1).abs().iterrows() if v["d-ode"] > v.plain}
             == {"ipndm", "deis:order=4", "unipc"}),
    ("ablations", "a larger scale is nearer, and more images than 100 change little",
     lambda: all(ablated(n, "d-ode:scale=50") < ablated(n, "d-ode")
                 and 0.98 < ablated(n, "d-ode:images=500") / ablated(n, "d-ode") < 1.02 for n in NETS)),
    ("ablations", "eq. (9) is nearer with noise prediction and few evaluations, and farther with 10",
     lambda: all(once_ablated("noise", s, n, "equation=9") < 0.71
                 for s, n in (("ddim", 3), ("ddim", 5), ("ipndm", 5), (f"{PP}:order=2", 5)))
             and once_ablated("noise", "ddim", 10, "equation=9") > 1.1),
    ("ablations", "by index 10 evaluations are six and twelve times as far",
     lambda: [round(once_ablated(n, "ddim", 10, "align=index")) for n in ("noise", "data")] == [6, 12]),
    ("limits", "D-DDIM comes nearer to the reference solution on both networks at every NFE",
     lambda: (worth("limits", "rmse").xs("ddim", level="solver").drop([2, 3], level="nfe") < 0.75).all()),
    ("limits", "of solvers farther than D-DDIM with as many evaluations about a quarter lose by their fit, NFE >= 5",
     lambda: 0.2 < behind_d_ddim().mean() < 0.32),
    ("limits", "fitted at once each solver is nearer to the teacher on the fit's seeds than step by step, or as near",
     lambda: (caused("teacher_fitted_rms").joint < 1.001 * caused("teacher_fitted_rms")["d-ode"]).all()),
    ("limits", "step by step (3M) and UniPC-3 end farther than plain on the fit's own seeds, noise, not at once",
     lambda: all(t.joint[s] < t.plain[s] < t["d-ode"][s] for t in [caused("teacher_fitted_rms").loc["noise"]]
                 for s in (PP, "unipc"))),
    ("limits", "its own many steps as teacher change a solver's RMSE by 4% at most",
     lambda: (caused("rmse")["d-ode:teacher=same"] / caused("rmse")["d-ode"]).dropna().sub(1).abs().max() < 0.04),
    ("limits", "with data prediction (3M) and UniPC-3 lose to the data step by step and gain at once",
     lambda: all(t.joint[s] < t.plain[s] < t["d-ode"][s] for t in [caused("fd_data").loc["data"]]
                 for s in (PP, "unipc"))),
    ("limits", "either fit brings (2M) nearer in RMSE and farther in Fréchet distance, data prediction",
     lambda: all(caused("rmse")[v]["data", f"{PP}:order=2"] < caused("rmse").plain["data", f"{PP}:order=2"]
                 and caused("fd_reference")[v]["data", f"{PP}:order=2"]
                 > caused("fd_reference").plain["data", f"{PP}:order=2"] for v in ("d-ode", "joint"))),
    ("solver_zoo", "UniPC-3 and DEIS on clean images are nearest, or within 3%, at NFE 3; at 5 on noise",
     lambda: all(best(n, k)[["UniPC-3", "DEIS on clean images"]].max() < 1.03 * best(n, k).min()
                 for n, k in (("noise", 3), ("noise", 5), ("data", 3)))),
    ("solver_zoo", "gradient estimation is nearest at NFE 5 on the data network, and behind DDIM on the other",
     lambda: best("data", 5).idxmin() == "Gradient estimation"
             and best("noise", 5)["Gradient estimation"] > best("noise", 5)["DDIM"]),
    ("ablations", "D-DDIM as released is farther than plain DDIM on both networks",
     lambda: all(ablated(n, "d-ode:align=released") > ablated(n, "plain") for n in NETS)),
    ("ablations", "D-EDM of noise estimates is nearer at NFE 5 than of clean images, and than as released",
     lambda: ablated("data", "d-ode:basis=own", "heun")
             < min(ablated("data", v, "heun") for v in ("d-ode", "d-ode:align=released"))),
    ("learned", "with NFE 3 DLMS on the last image is nearer than Gauss-Newton, ahead of all others at 5 and 8",
     lambda: all(learned()[ENDS][net, 3] < learned()[GN][net, 3]
                 and all(learned()[ENDS][net, n] < compared().drop(columns=GN).loc[net, n].min() for n in (3, 5, 8))
                 for net in NETS)),
    ("dlms", "each training on the last image is ahead of all handcrafted solvers in every measure, NFE 3, 5 and 8",
     lambda: all((t[again(ENDS, k)] < t[list(HANDCRAFTED)].min(axis=1)).all() for k in range(3)
                 for v in ("fd_reference", "fd_reference_transformer", "rmse") for t in [trained_often(v)])),
    ("dlms", "with noise prediction and NFE 3 each is ahead of each Gauss-Newton fit, elsewhere the ranges overlap",
     lambda: all((max(t[again(ENDS, k)][at] for k in range(3)) < min(t[again(GAUSS_NEWTON, k)][at] for k in range(3)))
                 == (at == ("fashion-mnist-noise", 3)) for t in [trained_often()] for at in t.index)),
    ("dlms", "LD3 is behind every other fit of the four losses with NFE 3; S4S-Alt is nearer without relaxed starts",
     lambda: min(crossed("ld3", 3)) > 3 * max(v for o in OPTIMISERS if o != "ld3" for v in crossed(o, 3))
             and studied()[next(iter(UNRELAXED))][DATA, 5] < studied()[again(fitted("s4s-alt", "seen"), 0)][DATA, 5]),
    ("dlms", "each technique helps in Fréchet distance with NFE 4",
     lambda: all(studied()[m][DATA, 4] > studied()[next(iter(ABLATION))][DATA, 4] for m in list(ABLATION)[1:])),
    ("dlms", "with NFE 8 each technique helps in RMSE, but for the feature distance",
     lambda: all((studied("rmse")[m][DATA, 8] > studied("rmse")[next(iter(ABLATION))][DATA, 8]) == ("pixels" not in m)
                 for m in list(ABLATION)[1:])),
    ("dlms", "with the level of a loss fixed all gain is lost at the end, with its gradient most is kept",
     lambda: studied("ended")[trained("stored")][DATA, 5] > 0.9 and studied("ended")[trained("moving")][DATA, 5] < 0.4),
    ("learned", "of the others the Gauss-Newton solver is nearest to the reference at NFE 3 to 10 on both networks",
     lambda: len(compared()) == 16 and (compared().idxmin(axis=1) == GN).all()),
    ("learned", "it has at most 0.2 of the best handcrafted distance at NFE 3, and 0.4 at 5",
     lambda: all((gain()[GN].xs(n, level="nfe") <= most).all() for n, most in ((3, 0.2), (5, 0.4)))),
    ("learned", "AMED and GITS as released are behind the best handcrafted solver at every NFE",
     lambda: (gain().loc["data", ["amed", "gits"]] > 1).all().all()),
    ("learned", "OLSS is nearer than DDIM, and DyWeight nearer than every handcrafted solver, from 6 calls on",
     lambda: all(learned().olss["data", n] < learned().ddim["data", n] and gain().dyweight["data", n] < 1
                 for n in range(6, 11))),
    ("learned", "GITS by the distance to DDIM's states, costs not growing, is nearer than as released at NFE 5 and 8",
     lambda: all(learned()["gits:cost=l2,teacher=ddim,growth=1"]["data", n] < learned().gits["data", n]
                 for n in (5, 8))),
    ("gauss_newton", "without clipping, without a classifier or with few images the fit is worse",
     lambda: all(learned()[f"{GN}:{c}"]["data", 3] > learned()[GN]["data", 3]
                 for c in ("residual=raw", "residual=seen-averaged", "images=32", "bias=0", "base=gits"))),
    ("carried", "on blocks that no choice was made on it has 0.2 and 0.4 of the handcrafted distance at most",
     lambda: all((gain(b)[GN].xs(n, level="nfe") <= most).all() for b in (1, 2) for n, most in ((3, 0.2), (5, 0.4)))),
    ("galaxies", "on HSC the Gauss-Newton solver has less RMSE and error of the flux than all but DLMS, NFE 3 to 6",
     lambda: all(galaxies(v)["hsc-64"].drop("DLMS, last image").idxmin()[n] == "Gauss-Newton, AFS"
                 for v in ("rmse", "flux_error") for n in (3, 4, 5, 6))),
    ("galaxies", "with 5 it is as near as the best handcrafted solver with 8",
     lambda: (t := galaxies("rmse")["hsc-64"]).loc["Gauss-Newton, AFS", 5] < t.loc[list(CRAFTED), 8].min()),
    ("galaxies", "it and DLMS have less error than others in all six quantities, alone distributions within the floor",
     lambda: (shapes(False)[WHOLE].max(axis=1) < shapes(False).drop(columns=WHOLE).min(axis=1)).all()
             and set(shapes(True).lt(floor_of_shapes(), axis=0).all().loc[lambda s: s].index) == set(WHOLE)),
    ("galaxies", "on ZTF-32 256 images leave two thirds of UniPC-3's RMSE, and DLMS half",
     lambda: [round(galaxies("rmse")["ztf-32"].loc[t, 5] / galaxies("rmse")["ztf-32"].loc[list(CRAFTED), 5].min(), 1)
              for t in ("Gauss-Newton, 256 images", "DLMS, last image")] == [0.6, 0.5]),
    ("galaxies", "on ZTF and LSST it is ahead of the handcrafted solvers only without an analytical first step",
     lambda: all(t.loc["Gauss-Newton", 5] < t.loc[list(CRAFTED), 5].min() < t.loc["Gauss-Newton, AFS", 5]
                 for t in map(galaxies("rmse").get, ("ztf-64", "lsst-60")))),
    ("galaxies", "distillation step by step makes DDIM better from 5 evaluations on, those of higher order worse",
     lambda: all((t.loc[f"D-{s}", n] < t.loc[s, n]) == (s == "DDIM") for t in [galaxies("rmse")["hsc-64"]]
                 for s in CRAFTED if s != "iPNDM" for n in (5, 6, 8))),
    ("own_features", "with 3 evaluations two classifiers are nearer than pixels in both evaluation networks, each fit",
     lambda: all((t["seen"] < t["seen-pixels"]).xs(3, level="nfe").all() for t in losses())),
    ("own_features", "own features are so with 3 on the data network, and with 5 on the noise network are not",
     lambda: all((t["own"] < t["seen-pixels"])["data", 3].all() and (t["own"] > t["seen-pixels"])["noise", 5].all()
                 for t in losses())),
    ("natural", "LD3 and S4S-Alt with NFE 5 are ahead of the best handcrafted solver with noise prediction alone",
     lambda: all((gain(0, "imagenet32")[m][net, 5] < 1) == (net == "noise")
                 for m in ("ld3", "s4s-alt") for net in NETS)),
    ("natural", "the Gauss-Newton solver is nearest to the reference in every block, and with 3 beats all others' 5",
     lambda: all((gain(b, "imagenet32").idxmin(axis=1) == GN).all() for b in (0, 1, 2))
             and (learned(images="imagenet32")[GN].xs(3, level="nfe")
                  < learned(images="imagenet32")[list(HANDCRAFTED)].min(axis=1).xs(5, level="nfe")).all()),
]  # fmt: skip


@pytest.mark.parametrize(("page", "claim", "holds"), CLAIMS, ids=[f"{page}: {claim}" for page, claim, _ in CLAIMS])
def test_a_claim_holds(page: str, claim: str, holds: Callable[[], object]) -> None:
    assert page in pages.pages()
    assert holds(), claim


@pytest.mark.parametrize("claim", papers.CLAIMS, ids=[claim.text for claim in papers.CLAIMS])
def test_a_verdict_on_a_papers_claim_is_so(claim: papers.Claim) -> None:
    assert claim.page in pages.pages() and claim.finding()[1]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_rows_are_whole_and_of_the_shipped_weights(name: str) -> None:
    found = rows(name)
    facts = ["checkpoint", "seeds", "network", "preset", "device", "torch", "python", "commit"]
    for fact in (f for f in facts if f in found):
        assert found[fact].notna().all() and (found[fact] != "unknown").all(), fact
    for checkpoint, weights in set(zip(found.checkpoint, found.weights, strict=True)):
        assert weights == zoo.digest(checkpoint)
    if "features" in found:
        assert (found.features.str.rpartition("-")[0] == found.data + "-classifier").all()


def test_every_pair_of_figures_3_and_4_has_three_blocks() -> None:
    """With few evaluations, of the paper's solvers; not so other grids and bases, and some later solvers."""
    for name, solvers in (("figure_3", (*plans.FOUR, "unipc")), ("figure_4", ("ddim", "heun", plans.LATER[0]))):
        found = rows(name).query("nfe <= 10 and variant in ['plain', 'd-ode']")
        found = found[found.solver.isin(solvers)]
        assert (found.groupby(["checkpoint", "solver", "variant", "nfe"]).block.agg(set) == {0, 1, 2}).all()
        assert (rows(name).n == 2000).all() and (rows(name).network == "float32").all()
