"""Numbers in prose: ``python -m book.prose`` writes them from the results, so that none is written by hand.

It renews the model cards beside the checkpoints and the table in the README; the tests compare both.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dode import zoo
from dode.experiments import FD_KEYS, Sweep
from dode.storage import write_text

ROOT = Path(__file__).resolve().parents[1]


def committed_fd() -> list[dict[str, str]]:
    """The rows of the committed Figure 4 run."""
    return Sweep(ROOT / "results" / "figure_4.standard.csv", FD_KEYS).rows


def _mean_spread(rows: list[dict[str, str]], **where: str) -> str:
    values = torch.tensor([float(r["fd"]) for r in rows if all(r[k] == v for k, v in where.items())]).double()
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def readme_table() -> str:
    """The README's table, Markdown, from the committed Figure 4 run."""
    rows = committed_fd()
    lines = ["| network, solver | NFE | plain | distilled |", "|---|---|---|---|"]
    for checkpoint, name, nfes in (
        ("fashion-mnist-noise", "ddim", ("5", "10", "25")),
        ("fashion-mnist-data", "ddim", ("5", "10", "25")),
        ("fashion-mnist-data", "heun", ("5", "9")),
    ):
        for nfe in nfes:
            pair = [
                _mean_spread(rows, checkpoint=checkpoint, solver=name, nfe=nfe, variant=v) for v in ("plain", "d-ode")
            ]
            lines.append(f"| {checkpoint}, {name} | {nfe} | {pair[0]} | {pair[1]} |")
    return "\n".join(lines) + "\n"


def model_card(name: str) -> str:
    """The model card of a shipped denoiser, Markdown, from its header and the committed results."""
    card, rows = zoo.metadata(name), committed_fd()
    recipe = card["recipe"]
    images = recipe["steps"] * recipe["batch"]
    row = next(
        r for r in rows if (r["checkpoint"], r["solver"], r["variant"], r["nfe"]) == (name, "ddim", "plain", "50")
    )
    return f"""# {name}

A small U-Net (EDM's recipe on pixel-unshuffled images) that predicts the {card["prediction"]} of Fashion-MNIST images,
1 x 28 x 28, values in -1..1. Stored in half precision as safetensors; the facts below are in the file's header.

| | |
|---|---|
| data | {card["data"]} |
| licence | {card["licence"]} |
| noise schedule | {", ".join(f"{k} {v}" for k, v in card["schedule"].items())} |
| training | {recipe["steps"]:,} steps of {recipe["batch"]} images ({images / 60_000:.1f} passes over the data), Adam, rate {recipe["rate"]:g} with a cosine to zero, moving average {recipe["ema"]} |
| time | {card["seconds"] / 60:.0f} minutes on {card["threads"]} CPU thread(s), {"bf16 autocast" if recipe["bf16"] else "float32"}, torch {card["torch"]} |
| loss | {card["final_loss"]:.4f} over the last 100 steps; the whole curve in `{name}.csv` |
| quality | FD (classifier features, not FID) {float(row["fd"]):.3f} with DDIM at 50 NFE, n = {int(row["n"]):,} |
| again | `python -m dode.training {name} --out runs` |

Made to show and test samplers. It knows ten kinds of garments in 28 x 28 grey pixels and nothing else.
"""  # noqa: E501


def write_prose() -> None:
    """Renew the model cards and the README's table."""
    for name in zoo.NAMES:
        write_text(zoo.CHECKPOINTS / f"{name}.md", model_card(name))
    readme = ROOT / "README.md"
    head, rest = readme.read_text(encoding="utf-8").split("-->\n", 1)
    write_text(readme, f"{head}-->\n{readme_table()}<!-- table: end -->{rest.split('<!-- table: end -->', 1)[1]}")


if __name__ == "__main__":
    write_prose()
