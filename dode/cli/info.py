"""``dode info FILE``: what a solver file holds; ``dode solvers``: the handcrafted solvers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dode import distillation, solvers
from dode.tableau import Tableau


def list_solvers(args: argparse.Namespace) -> None:
    """``dode solvers``."""
    line = "{:26}{:7}{:12}{:>5}  {}".format
    print(line("solver", "basis", "orders", "NFE", "source"))
    for facts in solvers.SOLVERS.values():
        orders, nfe = ", ".join(map(str, facts.orders)), facts.calls(10, True, {})
        print(line(facts.name, facts.basis, orders, nfe, facts.source))
    print("\nNFE: network evaluations in ten steps to noise level 0. Options follow the name: unipc:variant=bh1")


def run(args: argparse.Namespace) -> None:
    """``dode info``."""
    solver = distillation.load_solver(args.file)
    table = solver if isinstance(solver, Tableau) else solver.base
    print(json.dumps(as_json(solver, table)) if args.json else as_text(args.file, solver, table))


def as_json(solver: Tableau | distillation.Designed, table: Tableau) -> dict[str, Any]:
    """Everything in the file but the weights of a network that predicts the steps."""
    found: dict[str, Any] = dict(
        kind="table", nfe=table.nfe, basis=table.basis, sigmas=table.sigmas.tolist(),
        sigmas_in=table.sigmas_in.tolist(), start=table.noise_weights.tolist(), weights=table.weights.tolist(),
        metadata=solver.metadata,
    )  # fmt: skip
    if isinstance(solver, distillation.Designed):
        found |= dict(kind=type(solver).__name__, options=solver.options, parameters=parameters(solver))
    return found


def parameters(solver: distillation.Designed) -> int:
    """How many numbers the network holds that predicts the steps."""
    return sum(p.numel() for p in solver.designer.parameters())


def as_text(file: str, solver: Tableau | distillation.Designed, table: Tableau) -> str:
    """Facts first, then the table."""
    name = solver.metadata.get("solver", "solver")
    lines = [f"{Path(file).name}: {name}, {table.nfe} network evaluations (NFE)", ""]
    lines += [f"{what:16}{value}" for what, value in facts(solver, table)]
    if isinstance(solver, distillation.Designed):
        lines += ["", f"A network of {parameters(solver):,} parameters predicts each step. The table it starts from:"]
    return "\n".join([*lines, "", *table_lines(table)])


def facts(solver: Tableau | distillation.Designed, table: Tableau) -> Iterator[tuple[str, str]]:
    """What is known of the fit, as (name, value); a file without a fact has no line for it."""
    get: Callable[[str], Any] = solver.metadata.get
    yield "method", str(get("method") or "handcrafted")
    if get("source"):
        yield "based on", f"{get('source')}" + (f", order {get('order')}" if get("order") else "")
    if get("teacher"):
        yield "teacher", f"{get('teacher')}" + (f", NFE {get('teacher_nfe')}" if get("teacher_nfe") else "")
    units = {"network_evaluations": "network evaluations", "seconds": "seconds"}
    cost = [f"{get(key):,} {unit}" for key, unit in units.items() if isinstance(get(key), (int, float))]
    if cost:
        yield "cost", ", ".join(cost)
    if get("model"):
        shape = f", samples of shape {tuple(get('shape'))}" if isinstance(get("shape"), list) else ""
        yield "checkpoint", f"{get('model')}" + (f" (weights {get('weights')})" if get("weights") else "") + shape
    for name in ("prompt", "negative_prompt", "class_label", "guidance_scale", "trajectories"):
        if get(name):
            yield name.replace("_", " "), str(get(name))
    for name, key in (("seeds", "seeds"), ("held-out seeds", "check_seeds")):
        if get(key):
            yield name, ranges(get(key))
    yield "noise levels", " ".join(map(number, table.levels.tolist()))
    if isinstance(get("versions"), dict):
        yield "written by", ", ".join(f"{name} {version}" for name, version in get("versions").items())


def ranges(seeds: Any) -> str:
    """``[0, 1, 2, 7]`` as ``"0-2, 7"``."""
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        return str(seeds)
    runs = list[list[int]]()
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1][1:] = [seed]
        else:
            runs.append([seed])
    return ", ".join("-".join(map(str, run)) for run in runs)


def number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def table_lines(table: Tableau) -> list[str]:
    """One line a row: its noise level, the one given to the network, and the weights of the outputs so far."""
    rows, head = list[list[str]](), ["row", "sigma", "sigma_in"]
    for i, (full, sigma, sigma_in) in enumerate(zip(table.full.tolist(), table.sigmas, table.sigmas_in, strict=False)):
        dust = 1e-12 * max(map(abs, full))  # rounding, not a weight
        kept = [value if abs(value) > dust else 0.0 for value in full[: i + 2]]
        rows.append([str(i), number(float(sigma)), number(float(sigma_in)), *map(number, [*kept[1:], kept[0]])])
    newest = [list(reversed(row[3:-1])) for row in rows]
    reach = max(max((k + 1 for k, w in enumerate(weights) if w != "0"), default=0) for weights in newest)
    start = any(row[-1] != "0" for row in rows)
    head += ["newest", *(f"-{k}" for k in range(1, reach))][:reach] + ["noise"] * start
    shown = [
        row[:3] + (weights + [""] * reach)[:reach] + row[-1:] * start for row, weights in zip(rows, newest, strict=True)
    ]
    shown.append([str(len(rows)), number(float(table.sigmas[-1]))])
    widths = [max(map(len, column)) for column in zip_longest(head, *shown, fillvalue="")]
    output = "noise estimates" if table.basis == "noise" else "clean-image estimates"
    return [
        f"weights of the {output}, the newest first" + ("; noise: weight of the starting noise" if start else ""),
        *("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in [head, *shown]),
    ]
