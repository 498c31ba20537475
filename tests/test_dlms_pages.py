"""The pages "DLMS" and "Second-order fitting": what they say, held to the committed rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from told import page

from dode import experiments, lms
from dode.experiments import fits, learned
from dode.lms import recipes

ROOT = Path(__file__).parents[1]
DATA = "fashion-mnist-data"
NOISE = "fashion-mnist-noise"
ROWS, NOISE_ROWS = (
    {
        (r["method"], int(r["nfe"])): r
        for r in experiments.Sweep(ROOT / "results" / "learned.standard.csv", learned.LEARNED_KEYS).rows
        if r["checkpoint"] == name and r["block"] == "0"
    }
    for name in (DATA, NOISE)
)
MEASURES = ("fd_reference", "fd_data", "rmse")


def far(method: str, nfe: int, column: str = "fd_reference") -> float:
    return float(ROWS[method, nfe][column])


def usual(column: str) -> float:
    return far("gauss-newton", 3, column)


def crafted(column: str) -> float:
    best = min(learned.HANDCRAFTED, key=lambda method: far(method, 3))
    return far(best, 3, column)


# --- second order --------------------------------------------------------------------------------


def test_second_order_and_its_start() -> None:
    said = "divides the start's distance to the long run by {:.1f}, that to the data by {:.1f} and the RMSE by {:.1f}"
    assert said.format(*(far("start", 3, c) / usual(c) for c in MEASURES)) in page("second_order")


def test_second_order_and_the_handcrafted() -> None:
    said = "DEIS on the grid uniform in time, is {:.1f}, {:.1f} and {:.1f} times as far"
    best = min(learned.HANDCRAFTED, key=lambda method: far(method, 3))
    assert (best, ROWS[best, 3]["grid"]) == ("deis", "time")
    assert said.format(*(crafted(c) / usual(c) for c in MEASURES)) in page("second_order")


def test_what_each_part_of_the_fit_is_worth() -> None:
    said, worth = page("second_order"), lambda variant: far(f"gauss-newton:{variant}", 3) / far("gauss-newton", 3)
    for words, variant in (
        ("images that are not clipped the fit ends {} times as far", "residual=raw"),
        ("the observer's eyes alone (with pixels) it ends at {},", "residual=seen-observer"),
        ("without any classifier, at {}.", "residual=seen-averaged"),
        ("With 32 in place of 191: {},", "images=32"),
        ("The mean error not weighed: {}.", "bias=0"),
        ("The states on the way minded too: {}.", "path=0.1"),
        ("Each image's error bounded: {};", "limit=5"),
        ("At DPM-Solver++(3M): {}.", "base=dpm_solver_pp"),
        ("Without the analytical first step: {}.", "afs=False"),
        ("At its own fit of two calls: {},", "near=2"),
        ("of four: {}.", "near=4"),
        ("for another solver: {}.", "base=gits"),
    ):
        assert words.format(f"{worth(variant):.2f}") in said, variant
    assert f"trained as DLMS is: {far('dlms:base=gauss-newton', 3) / far('gauss-newton', 3):.2f}." in said
    cheap, usual_cost = (int(ROWS[m, 3]["evaluations"]) for m in ("gauss-newton:images=32", "gauss-newton"))
    assert f"for {cheap:,} evaluations" in said and f"All this takes {usual_cost:,} network evaluations" in said
    assert usual_cost < 3 * lms.recipes.BUDGET == 48_000
    solver = lms.load(ROOT / "results" / "solvers" / "standard" / f"{DATA}-gauss-newton-3.safetensors")
    assert solver.metadata["images"] == 191
    fewer = float(NOISE_ROWS["gauss-newton:images=176", 3]["fd_reference"])
    assert f"ends at {fewer / float(NOISE_ROWS['gauss-newton', 3]['fd_reference']):.2f} of the distance" in said


def test_a_jacobian_is_cheap() -> None:
    said = "has 12 numbers, and a Jacobian takes 19 calls an image in place of 39"
    space = lms.Space(fits.start("gauss-newton", DATA, "cpu", 3)[0], top=True)
    again = sum(3 - row - kept for row, kept in zip(space.rows, space.moves_only, strict=True))
    size = len(space.kinds)
    found = f"has {size} numbers, and a Jacobian takes {3 + again} calls an image in place of {3 + 3 * size}"
    assert found == said
    assert said in page("second_order")


def test_differences_are_cheaper_than_forward_mode() -> None:
    with open(ROOT / "results" / "jacobian.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert {r["checkpoint"] for r in rows} == {"fashion-mnist-noise", DATA}
    assert "four to five times a forward pass" in page("second_order")
    assert all(4 < float(r["ratio"]) < 5.05 and float(r["ratio_min"]) > 1 for r in rows)
    assert all(r["layout"] == "contiguous" for r in rows)  # no forward mode in the shipped layout


# --- DLMS ----------------------------------------------------------------------------------------


def test_the_paper_s_ablation() -> None:
    with open(ROOT / "results" / "published_dlms_ablation.csv", newline="", encoding="utf-8") as f:
        fid = {(r["variant"], int(r["nfe"])): float(r["fid"]) for r in csv.DictReader(f)}
    ratio = {key: value / fid["DLMS", key[1]] for key, value in fid.items() if key[0].startswith("without")}
    names = {key[0] for key in ratio}
    assert len(names) == 6 and "the adaptive schedule most of all" in page("dlms")
    assert all(max(names, key=lambda n: ratio[n, nfe]) == "without the adaptive schedule" for nfe in (4, 6, 8, 10))
    assert round(fid["best handcrafted", 4] / fid["DLMS", 4], 1) == 5.7 and "has 5.7 times the FID" in page("dlms")
    assert "all but the bottleneck feature and the initialisation" in page("dlms")
    assert {n for n in names if ratio[n, 4] == max(ratio[n, nfe] for nfe in (4, 6, 8, 10))} == names - {
        "without the bottleneck feature",
        "without high-order initialisation",
    }


def gain(method: str, nfe: int, noise: bool = False) -> float:
    """FD to the long run over the best handcrafted solver's."""
    rows = NOISE_ROWS if noise else ROWS
    return float(rows[method, nfe]["fd_reference"]) / min(
        float(rows[m, nfe]["fd_reference"]) for m in learned.HANDCRAFTED
    )


def test_dlms_is_nearer_than_its_start() -> None:
    said = page("dlms")
    times = [f"{far('start', nfe) / far('dlms', nfe):.1f}" for nfe in (3, 5, 10, 4)]
    assert (
        "at 3 calls {} times as near to the long run as its start, at 5 calls {} times, at 10 {} times".format(
            *times[:3]
        )
        in said
    )
    assert f"At 4 calls it is {times[3]} times as near" in said and float(times[3]) > 1


def test_the_cost_grows_at_four_calls_and_the_best_is_kept() -> None:
    assert "the cost is least after a few checks and then grows, at our rate too" in page("dlms")
    solver = lms.load(ROOT / "results" / "solvers" / "standard" / f"{DATA}-dlms-4.safetensors")
    cost = solver.metadata["cost"]
    assert 0 < cost.index(min(cost)) < 6 and cost[-1] > cost[0] > min(cost)
    assert solver.metadata["trajectories"] == 1600


def test_dlms_beside_the_others() -> None:
    assert "is farther from the long run at 3 and 4 calls, and nearer from 5 on" in page("dlms")
    assert [nfe for nfe in range(3, 11) if gain("dlms", nfe) < 1] == [3, 4]
    assert all(far("gauss-newton", nfe) < far("dlms", nfe) for nfe in (4, 6, 8, 10))


@pytest.mark.parametrize("nfe", (4, 6, 8, 10))
def test_other_features_are_another_training(nfe: int) -> None:
    """Neither training may have gone on from the other's state."""
    assert any(far("dlms", nfe, column) != far("dlms:residual=pixels", nfe, column) for column in MEASURES)


def test_the_ablation() -> None:
    said, calls = page("dlms"), (4, 6, 8, 10)
    worth = lambda change, nfes=calls: [f"{far(f'dlms:{change}', n) / far('dlms', n):.2f}" for n in nfes]  # noqa: E731
    assert "(without it {}, {}, {} and {} times as far with 4, 6, 8 and 10)".format(*worth("residual=pixels")) in said
    for words, change in (
        ("time scaling ({})", "scaling=False"),
        ("initialisation ({})", "base=ddim"),
        ("is worth little ({})", "adaptive=False"),
        ("bottleneck feature ({})", "features=False"),
    ):
        assert words.format(", ".join(worth(change))) in said, change
    assert all(float(v) > 1 for c in ("residual=pixels", "scaling=False", "base=ddim") for v in worth(c))
    assert f"AFS does from 6 on ({', '.join(worth('afs=False', calls[1:]))})" in said
    (four,) = worth("afs=False", (4,))
    assert f"({four} of the full method's distance)" in said and float(four) < 0.6


def test_what_was_tried() -> None:
    said, eyes, on_top = page("dlms"), "dlms:residual=seen", "dlms:base=gauss-newton,residual=seen"
    assert f"({gain(eyes, 4):.2f} and {gain(eyes, 6):.2f} of the best handcrafted distance)" in said
    assert f"length of training at 5 ({gain(f'{eyes},trajectories=20000', 5):.2f})" in said
    four, five, six = (f"{gain(eyes, nfe, noise=True):.2f}" for nfe in (4, 5, 6))
    assert f"level at 4 ({four}) and not at 5 and 6 ({five}, {six})" in said
    without = [f"{gain('dlms:afs=False,residual=seen', nfe, noise=True):.2f}" for nfe in (4, 5, 6)]
    assert "without AFS it comes nearer at 5 and 6 ({}, {} and {})".format(*without) in said
    trainings = ("dlms", "dlms:trajectories=20000", "dlms:residual=seen,trajectories=20000")
    short, long, both = (gain(method, 5, noise=True) for method in trainings)
    assert f"({long:.2f} in place of {short:.2f}, with those eyes {both:.2f})" in said
    longer = "dlms:afs=False,residual=seen,trajectories="
    ours, theirs = ([gain(f"{longer}6400", nfe, noise) for nfe in (4, 5, 6)] for noise in (False, True))
    assert "{:.2f}, {:.2f} and {:.2f} with 4, 5 and 6 calls".format(*ours) in said
    assert "on the noise-predicting one {:.2f}, {:.2f} and {:.2f}. On two".format(*theirs) in said
    assert f"({gain(f'{longer}20000', 5, noise=True):.2f} in place of {theirs[1]:.2f})" in said
    begun = {
        (noise, nfe, more): f"dlms:afs=False,base=dpm_solver_pp,grid={'quadratic' if noise else 'Karras'}{more}"
        for noise in (False, True)
        for nfe in (4, 5, 6)
        for more in ("", ",residual=seen")
    }
    leads = {k for k, m in begun.items() if gain(m, k[1], k[0]) > gain("dpm_solver_pp", k[1], k[0])}
    assert begun.keys() - leads == {(False, 4, ""), (False, 4, ",residual=seen")}
    assert f"({gain(begun[False, 4, ',residual=seen'], 4):.2f} with the same eyes)" in said
    tops = {(noise, nfe): gain(on_top, nfe, noise) for noise in (False, True) for nfe in (4, 5, 6)}
    assert f"{min(tops.values()):.2f} to {max(tops.values()):.2f} on the two networks" in said
    ahead = {key for key, value in tops.items() if value < 0.99 * gain("gauss-newton", key[1], key[0])}
    assert ahead == {(True, 4), (True, 6)}


def test_what_was_tried_on_other_blocks() -> None:
    rows = pd.read_csv(ROOT / "results" / "learned.standard.csv")
    rows = rows[rows.nfe.isin([4, 5, 6])].set_index(["method", "checkpoint", "nfe", "block"]).fd_reference
    best = rows[list(learned.HANDCRAFTED)].groupby(["checkpoint", "nfe", "block"]).min()
    together, eyes = "dlms:afs=False,residual=seen,trajectories=6400", "dlms:residual=seen"
    ratio = (rows[together] / best).dropna()
    assert len(ratio) == 18 and all((ratio.xs(nfe, level="nfe") < 1).all() for nfe in (4, 6))
    fresh = ratio[ratio.index.get_level_values("block") > 0]
    ahead, five = fresh.drop(5, level="nfe"), fresh.xs(5, level="nfe")
    assert five.min() > 1
    words = "{:.2f} to {:.2f}, and with 5 behind, {:.2f} to {:.2f}"
    assert words.format(ahead.min(), ahead.max(), five.min(), five.max()) in page("dlms")
    for method, nfe in ((eyes, 6), (f"{eyes},trajectories=20000", 5)):
        first, *others = (float(rows[method, DATA, nfe, block] / best[DATA, nfe, block]) for block in (0, 1, 2))
        assert first < 1 and sorted(other < 1 for other in others) == [False, True]


def test_the_same_training_twice_is_the_same() -> None:
    """``dlms-fixed`` is "without the bottleneck feature" under another name: trained apart, as far to a thousandth."""
    for nfe in (4, 6, 8, 10):
        assert far("dlms-fixed", nfe) == pytest.approx(far("dlms:features=False", nfe), rel=1e-3)


# --- rates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-3, 5e-3])
def test_the_trainings_at_other_rates_are_kept(rate: float) -> None:
    method = f"dlms:rate={rate:g},trajectories=1600"
    found = fits.fit(experiments.preset("quick"), DATA, "cpu", method, 6)
    assert found.metadata["trajectories"] == 1600 and min(found.metadata["cost"]) < found.metadata["cost"][0]


def test_a_rate_is_told_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = list[float]()

    def train(start: lms.Designed, *_: object, rate: float, **more: object) -> lms.Designed:
        rates.append(rate)
        return start

    monkeypatch.setattr(recipes, "train", train)
    table, make = fits.start("dlms", DATA, "cpu", 3)
    task = recipes.Task(experiments.load_cached(DATA, "cpu"), table, make, torch.zeros(1, 1, 28, 28))
    for options in ({}, dict(features=False), dict(rate=3e-3)):
        fits._fit("dlms", task, options)
    assert rates == [2.5e-4, 2e-3, 3e-3]
