"""Presets, the registry of networks, seeds, and the committed numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import dode
from book import prose
from dode import experiments, zoo
from dode.zoo.datasets import data_set

ROOT = Path(__file__).resolve().parents[1]
FASHION = ("fashion-mnist-noise", "fashion-mnist-data")


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_shipped_checkpoint_is_small_and_documented(name: str) -> None:
    path, card = zoo.checkpoint_file(name), zoo.metadata(name)
    assert path.stat().st_size <= (8e6 if name in FASHION else 16e6)
    model = dode.load(name)
    assert sum(p.numel() for p in model.network.parameters()) <= (3e6 if name in FASHION else 15e6)
    assert not any(p.requires_grad for p in model.network.parameters()) and model.shape == data_set(name).shape
    assert {"data", "licence", "recipe", "seconds", "final_loss"} <= card.keys()
    assert path.with_suffix(".csv").is_file()
    assert path.with_suffix(".md").read_text() == prose.model_card(name)


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False}, None),
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ("cpu", {}, None),
        ("cuda", {"avx512_bf16": False}, torch.bfloat16),
    ],
)
def test_bf16_only_where_the_device_has_it(
    device: str, has: dict[str, bool], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert experiments.Run(experiments.preset("standard"), device).autocast == expected
    assert experiments.Run(experiments.preset("smoke"), device).autocast is None


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "nfe"), [(FASHION[0], 5), (FASHION[1], 2)])
def test_a_committed_fit_and_its_distance_can_be_made_again(checkpoint: str, nfe: int) -> None:
    """The lambdas; the distance of few of the row's images in order of magnitude and order of solvers."""
    rows = experiments.committed("figure_4").query("solver == 'ddim' and block == 0")
    rows = rows[(rows.checkpoint == checkpoint) & (rows.nfe == nfe)].set_index("variant")
    model = dode.load(checkpoint)
    plain = experiments.base_solver("ddim", model, nfe)
    again = experiments.distilled(model, plain, 100)
    lambdas = torch.tensor(experiments.numbers(rows.lambdas["d-ode"]))
    torch.testing.assert_close(torch.tensor(again.metadata["lambdas"]), lambdas, rtol=2e-3, atol=2e-3)
    features, reference = experiments.data_moments("fashion-mnist")
    seeds = experiments.held_out_seeds(300)
    fd = {
        variant: dode.metrics.measure(experiments.draw(model, table, seeds), features, reference)["fd"]
        for variant, table in (("plain", plain), ("d-ode", again))
    }
    assert min(fd, key=lambda v: fd[v]) == rows.fd.idxmin()
    assert fd["plain"] == pytest.approx(rows.fd["plain"], rel=0.3)  # of few images it is larger


def test_the_readme_table_is_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    between = re.search(r"<!-- table: begin[^\n]*-->\n(.*)<!-- table: end -->", text, re.DOTALL)
    assert between and between.group(1).strip() == prose.readme_table().strip()


# -- variants of a distilled solver ----------------------------------------------------------------


def test_a_variant_is_written_in_one_word() -> None:
    run = experiments.Run(experiments.preset("smoke"))
    make = lambda variant, solver="ddim": experiments.variant_of(run, FASHION[0], solver, variant, 3)  # noqa: E731
    model = dode.load(FASHION[0])
    assert torch.equal(make("plain").full, experiments.base_solver("ddim", model, 3).full)
    usual = make("d-ode:scale=2,images=4").metadata
    assert usual["scale"] == 2 and usual["seeds"] == [0, 1, 2, 3] and usual["teacher"] == "ddim"
    other = make("d-ode:scale=2,images=4,teacher=same,align=index,equation=9,first_step=none", "unipc:order=2").metadata
    assert (other["teacher"], other["align"], other["equation"], other["first_step"]) == ("unipc", "index", 9, "none")
    released = make("d-ode:scale=2,images=4,align=released").metadata
    assert (released["align"], released["teacher_nfe"]) == ("released", 6)
    assert make("d-ode:scale=2,images=4,align=released", "dpm_solver").metadata["solver"] == "d-dpm_solver"
    borrowed = make(f"d-ode:scale=2,images=4,model={FASHION[1]}")
    assert "model" not in borrowed.metadata  # so that this model may use it
    assert not torch.allclose(borrowed.full, make("d-ode:scale=2,images=4").to_basis(borrowed.basis).full)
    for wrong, message in (("d-odd", "no variant named 'd-odd'"), ("d-ode:C=3", "has no option 'C=3'; it has images")):
        with pytest.raises(ValueError, match=message):
            make(wrong)
