"""What a page recomputes at the preset "quick", beside the rows that it draws from the committed results.

A quick page shows the rows of the standard run and computes a few of their cells again, with fewer images.  A distance
of few images is not that of many (a Fréchet distance is biased by about 1/n), so each is compared with the value that
is *expected at its own size*: the mean and the standard deviation over blocks of seeds, in ``results/live.csv``.
``DODE_RECORD=1 make book`` measures these again.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Mapping
from typing import Any

from dode.experiments.measurements import Measurement, text
from dode.experiments.rows import Sweep
from dode.experiments.run import Run
from dode.experiments.sweeps import Preset, home, provenance
from dode.utils.files import FileError

LIVE_KEYS = ("page", "cell", "column", "n")
BLOCKS = 5  # of seeds behind an expected value
ROUNDING = 0.03  # relative spread of a number whose seeds are fixed: other processors round otherwise
ALLOWED = 3  # spreads


class Live:
    """The live share of the page called ``page``, in the sizes of ``p.live``, ``p`` being the page's preset.

    At other presets than "quick" nothing is recomputed: there all rows are measured.
    """

    def __init__(self, page: str, p: Preset, device_name: str) -> None:
        self.page, self.preset, self.active, self.device = page, p, bool(p.rows_of), device_name
        self.recording = bool(os.environ.get("DODE_RECORD"))
        self.expected = Sweep(home() / "results" / "live.csv", LIVE_KEYS)
        self.checks = list[dict[str, Any]]()

    def check(
        self,
        committed: Mapping[str, Any],
        measurement: Measurement,
        column: str,
        preset: Preset | None = None,
        rounding: float = ROUNDING,
        **changes: Any,
    ) -> None:
        """Measure the cell of ``committed``, a row of the standard run, again, and compare ``column``.

        ``preset`` has the sizes, by default the page's live ones; ``changes`` is in what the cell differs from
        ``committed`` there.  With a "block" in the cell, the expected value has a spread over blocks of seeds, and the
        live one is of block 0; without, ``rounding`` is the relative spread, 0 of a number that is counted.

        FileError if nothing is expected of this cell yet; ``DODE_RECORD=1`` measures that.
        """
        if not self.active:
            return
        run, cell = Run(preset or self.preset.live, self.device), measurement.cell(committed, **changes)
        cell |= {"block": 0} if "block" in cell else {}
        row = cell | measurement(run, **cell)
        word = ", ".join(f"{k} {v}" for k, v in cell.items() if k not in ("weights", "n", "block"))
        where = dict(page=self.page, cell=word, column=column, n=str(row.get("n", "")))
        if self.recording:
            blocks = range(1, BLOCKS if "block" in cell else 1)
            again = [float(measurement(run, **cell | {"block": b})[column]) for b in blocks]
            self._record(where, [float(row[column]), *again], rounding)
        found = self._expected(where)
        if "expected" not in found:
            raise FileError(f"{self.expected.path} has no value of {self.page}: {word}; DODE_RECORD=1 measures it")
        value, expected, spread = (float(v) for v in (row[column], found["expected"], found["spread"]))
        short = re.sub(r"\b(checkpoint|solver|variant|method) ", "", found["cell"]).replace("nfe ", "NFE ")
        self.checks.append(
            {
                "recomputed": f"{column}: {short}", "committed": f"{float(committed[column]):.3f}",
                "n": committed.get("n", ""), "computed now": f"{value:.3f}", "n now": where["n"],
                "expected at n now": f"{expected:.3f} ± {spread:.3f}",
                "as expected": "yes" if abs(value - expected) <= ALLOWED * spread else "no",
            }
        )  # fmt: skip

    def _expected(self, where: dict[str, str]) -> dict[str, str]:
        """The row of what is expected, in whatever order it names the cell; ``where`` if there is none."""
        words = lambda row: [row["page"], set(row["cell"].split(", ")), row["column"], row["n"]]  # noqa: E731
        return next((row for row in self.expected.rows if words(row) == words(where)), where)

    def _record(self, where: dict[str, str], values: list[float], rounding: float) -> None:
        """Replace the expected value of a cell by mean and spread of ``values``."""
        mean = statistics.fmean(values)
        found = dict(expected=mean, spread=statistics.stdev(values) if len(values) > 1 else rounding * abs(mean))
        numbers = {k: text(k, v) for k, v in found.items()}
        named = where | {"cell": self._expected(where)["cell"]}
        self.expected.add({**named, **numbers, "blocks": len(values), **provenance(self.device)}, replace=True)

    def show(self, drawn: str = "Pictures", committed: str = "Curves and tables") -> None:
        """One line that says what is live and what is committed, and the checks as a table.

        ``drawn`` is what else the page computed now, if anything, ``committed`` what it drew from the committed rows.

        ValueError if a number is more than three spreads from the expected one; the build ends with this.
        """
        if not self.active:
            return
        numbers = f"{drawn}, and the" if drawn else "The"
        print(
            f"{committed} above: the committed run (results/*.standard.csv). "
            f"{numbers} {len(self.checks)} numbers below: computed now, at a smaller size."
        )
        if self.checks:
            import pandas as pd  # the library itself needs neither
            from IPython.display import HTML, display

            display(HTML(pd.DataFrame(self.checks).to_html(index=False, border=0)))
        if outside := [f"{c['recomputed']}: {c['computed now']}, expected {c['expected at n now']}"
                       for c in self.checks if c["as expected"] == "no"]:  # fmt: skip
            raise ValueError("recomputed numbers are not as expected: " + "; ".join(outside))
