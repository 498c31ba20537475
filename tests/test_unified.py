"""The page "One formula": its loop and its closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_solvers import MIXTURE, NOISE, rough

import dode
from book import pages
from dode import distillation, schedules, solvers

EIGHT = schedules.karras(8, 0.002, 80.0)
GRIDS = {
    "Karras": EIGHT,
    "time, to zero": schedules.time_uniform(6, 0.01, 80.0, final="zero"),
    "log SNR, to zero": schedules.log_snr(5, 0.05, 20.0, final="zero"),
    "uneven": torch.tensor([50.0, 40.0, 9.0, 8.0, 0.5, 0.4, 0.1]).double(),
}
ALPHAS = {"VP": schedules.vp_linear().alpha, "EDM": schedules.EDM().alpha}
CELLS = [cell.source for cell in pages.read_source("unified").cells]


def the_page() -> SimpleNamespace:
    """What the page defines: its cells that begin with a function, run here."""
    modules = (dode, distillation, math, schedules, solvers, torch)
    names = {m.__name__.split(".")[-1]: m for m in modules} | {"np": np}
    for cell in CELLS:
        if cell.startswith("def ") and "def numbers" not in cell and "def used" not in cell:
            exec(cell, names)
    return SimpleNamespace(**names)


PAGE = the_page()
MEMBERS = list(PAGE.members(EIGHT))


# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_formula_is_the_packages_loop(grid) -> None:
    for member, table in {**PAGE.members(grid), "at random": PAGE.at_random(grid)}.items():
        assert not table.noise_weights.any() and PAGE.window(table) <= 4, member
        for name, alpha in ALPHAS.items():
            assert PAGE.difference(MIXTURE, table, NOISE, alpha) < 1e-12, (member, name)


def test_the_windows_are_those_of_the_names() -> None:
    windows = {name: PAGE.window(table) for name, table in PAGE.members(EIGHT).items()}
    wanted = dict(zip(MEMBERS, (1, 2, 3, 3, 3, 4, 1, 2, 3, 4, 3, 4, 4, 2), strict=True))
    assert windows == wanted and windows["UniPC-3"] == 4 and windows["D-DDIM, all λ = 0.3"] == 2


@given(grid=rough)
@settings(max_examples=10)
def test_parts_sum_to_one(grid) -> None:
    for table in (*PAGE.members(grid).values(), PAGE.at_random(grid)):
        largest = table.normalised_weights.abs().amax(1)
        assert ((table.normalised_weights.sum(1) - 1).abs() < 1e-12 * largest).all()


@given(grid=rough)
@settings(max_examples=10)
def test_every_closed_form_is_the_tables_parts(grid) -> None:
    forms = PAGE.closed_forms(grid)
    assert list(forms) == MEMBERS
    for member, table in PAGE.members(grid).items():
        size = float(table.normalised_weights.abs().max())
        assert PAGE.gap(PAGE.coefficients(table), forms[member]) < 1e-9 * size, member


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp_singlestep"])
def test_stages_that_go_down_are_steps_of_the_formula(name, order) -> None:
    table = solvers.get(name).make(EIGHT, order=order)
    assert PAGE.window(table) == order and PAGE.difference(MIXTURE, table, NOISE, ALPHAS["VP"]) < 1e-12


def test_the_other_basis_uses_every_output_and_not_the_starting_noise() -> None:
    for member, table in PAGE.members(EIGHT).items():
        twin = table.to_basis("data" if table.basis == "noise" else "noise")
        assert not twin.noise_weights.any()
        used = (twin.normalised_weights.abs() > 1e-9).sum(1).tolist()
        assert used == ([1] * 8 if member.startswith("DDIM") else list(range(1, 9))), member
