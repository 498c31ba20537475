"""Numbers in prose: ``python -m book.prose`` writes them from the results, so that none is written by hand.

It renews the model cards beside the checkpoints and the table in the README; the tests compare both.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dode import zoo
from dode.experiments import plots
from dode.experiments.learned import HANDCRAFTED
from dode.training import TRAININGS
from dode.utils.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("figure_4.standard", "natural.standard", "figure_4.full", "natural.full")  # with distances of every network


def readme_table() -> str:
    """The README's table, Markdown, from the committed comparison of learned solvers."""
    rows = pd.read_csv(ROOT / "results" / "learned.standard.csv")
    floors = pd.read_csv(ROOT / "results" / "floors.standard.csv").set_index(["checkpoint", "n"]).fd_data
    handcrafted_and_fitted = "best handcrafted solver", "distilled (Gauss-Newton)"
    head = ("checkpoint", "NFE", "DDIM, best noise levels", *handcrafted_and_fitted, "reference solution", "n")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for checkpoint in ("fashion-mnist-noise", "fashion-mnist-data", "imagenet32-data"):
        cell = rows[(rows.checkpoint == checkpoint) & (rows.weights == zoo.digest(checkpoint)) & (rows.nfe == 5)]
        blocks = cell.groupby("method").fd_data
        best = blocks.mean()[list(HANDCRAFTED)].idxmin()
        plain, handcrafted, learned = (plots.spread(blocks.get_group(m)) for m in ("ddim", best, "gauss-newton"))
        numbers = (
            f"{plain} | {handcrafted} ({plots.NAMES[best]}) | {learned} | {floors[checkpoint, cell.n.iloc[0]]:.3f}"
        )
        lines.append(f"| {checkpoint} | 5 | {numbers} | {cell.n.iloc[0]:,} |")
    return "\n".join(lines) + "\n"


def measured(name: str) -> str:
    """What the committed runs found for DDIM at 50 NFE on a network; the run with most images, if several."""
    files = [ROOT / "results" / f"{file}.csv" for file in RUNS]
    rows = pd.concat([pd.read_csv(file, dtype={"weights": str}) for file in files if file.is_file()], ignore_index=True)
    rows = rows[(rows.checkpoint == name) & (rows.weights == zoo.digest(name)) & (rows.nfe == 50)]
    rows = rows[(rows.solver == "ddim") & (rows.variant == "plain")]
    if rows.empty:
        return "not measured yet"
    row = rows.loc[rows.n.idxmax()]
    return f"FD (classifier features, not FID) {row.fd:.3f} with DDIM at 50 NFE, n = {row.n:,}"


def model_card(name: str) -> str:
    """The model card of a shipped denoiser, Markdown, from its header and the committed results."""
    card, known = zoo.metadata(name), zoo.data_set_of(name)
    recipe = card["recipe"]
    images = recipe["steps"] * recipe["batch"]
    on = f"{card['threads']} CPU thread(s)" if card["device"] == "cpu" else card["device"]
    large = " --large" * (card["config"]["widths"] != list(TRAININGS[name].network["widths"]))
    patch = "pixel-unshuffled images" if card["config"]["patch"] > 1 else "pixels"
    return f"""# {name}

A small U-Net (EDM's recipe on {patch}) that predicts the {card["prediction"]} of {known.title} images,
{" x ".join(map(str, known.shape))}, values in -1..1. Stored in half precision as safetensors; the facts below are in the file's header.

| | |
|---|---|
| data | {card["data"]} |
| licence | {card["licence"]} |
| noise schedule | {", ".join(f"{k} {v}" for k, v in card["schedule"].items())} |
| training | {recipe["steps"]:,} steps of {recipe["batch"]} images ({images / known.images:.1f} passes over the data), Adam, rate {recipe["rate"]:g} with a cosine to zero, moving average {recipe["ema"]} |
| time | {card["seconds"] / 60:.0f} minutes on {on}, {"bf16 autocast" if recipe["bf16"] else "float32"}, torch {card["torch"]} |
| loss | {card["final_loss"] or float("nan"):.4f} over the last 100 steps; the whole curve in `{name}.csv` |
| quality | {measured(name)} |
| again | `dode train {name} --out runs{large}` |

Made to show and test samplers. {known.scope}
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
