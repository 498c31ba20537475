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
from collections.abc import Callable, Mapping
from typing import Any

from dode.experiments.sweeps import Preset, Sweep, home, provenance
from dode.utils.files import FileError

LIVE_KEYS = ("page", "cell", "column", "n")
BLOCKS = 5  # of seeds behind an expected value
ROUNDING = 0.03  # relative spread of a number whose seeds are fixed: other processors round otherwise
ALLOWED = 3  # spreads


class Live:
    """The live share of one page.  At other presets than "quick" nothing is recomputed: there all rows are measured.

    Parameters
    ----------
    page
        Its name.
    p
        The page's preset; ``p.live`` has the sizes that are computed with.
    """

    def __init__(self, page: str, p: Preset, device_name: str) -> None:
        self.page, self.active, self.device = page, bool(p.rows_of), device_name
        self.recording = bool(os.environ.get("DODE_RECORD"))
        self.expected = Sweep(home() / "results" / "live.csv", LIVE_KEYS)
        self.checks = list[dict[str, Any]]()

    def check(
        self,
        committed: Mapping[str, Any],
        cell: Mapping[str, Any],
        work: Callable[..., Mapping[str, Any]],
        column: str,
        rounding: float = ROUNDING,
    ) -> None:
        """Measure one cell again.

        Parameters
        ----------
        committed
            The row of the standard run that the page shows.
        cell
            The arguments of ``work``, at the live size.  With a "block" among them, the expected value has a spread
            over blocks of seeds; the live one is of block 0.
        work
            What measures a cell: a function of the row, with the live preset and the device filled in.
        column
            The number to compare.
        rounding
            The relative spread that is expected of a cell without a block; 0 of a number that is counted.
        """
        if not self.active:
            return
        cell = dict(cell) | ({"block": 0} if "block" in cell else {})
        row = {**cell, **work(**cell)}
        n, word = row.get("n", ""), ", ".join(f"{k} {v}" for k, v in cell.items() if k not in ("weights", "n", "block"))
        where = dict(page=self.page, cell=word, column=column, n=n)
        if self.recording:
            self._record(where, cell, work, column, float(row[column]), rounding)
        found = self.expected.select([where])
        if not found:
            raise FileError(f"{self.expected.path} has no value of {self.page}: {word}; DODE_RECORD=1 measures it")
        value, expected, spread = (float(v) for v in (row[column], found[0]["expected"], found[0]["spread"]))
        short = re.sub(r"\b(checkpoint|solver|variant|method) ", "", word).replace("nfe ", "NFE ")
        self.checks.append(
            {
                "recomputed": f"{column}: {short}", "committed": f"{float(committed[column]):.3f}",
                "n": committed.get("n", ""), "computed now": f"{value:.3f}", "n now": n,
                "expected at n now": f"{expected:.3f} ± {spread:.3f}",
                "as expected": "yes" if abs(value - expected) <= ALLOWED * spread else "no",
            }
        )  # fmt: skip

    def _record(
        self, where: Mapping[str, Any], cell: dict[str, Any], work: Any, column: str, first: float, rounding: float
    ) -> None:
        """Replace the expected value of a cell."""
        values = [first]
        if "block" in cell:
            values += [float(work(**cell | {"block": b})[column]) for b in range(1, BLOCKS)]
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else rounding * abs(mean)
        fresh = Sweep(self.expected.path, LIVE_KEYS)  # other pages add to it
        fresh.rows = [row for row in fresh.rows if any(row[k] != str(v) for k, v in where.items())]
        fresh.add(
            {
                **where, "expected": f"{mean:.5f}", "spread": f"{spread:.5f}", "blocks": len(values),
                **provenance(self.device),
            }
        )  # fmt: skip
        self.expected = fresh

    def show(self, drawn: str = "Pictures", committed: str = "Curves and tables") -> None:
        """One line that says what is live and what is committed, and the checks as a table.

        Parameters
        ----------
        drawn
            What else the page computed now; empty: nothing.
        committed
            What it drew from the committed rows.

        Raises
        ------
        ValueError
            A number is more than three spreads from the expected one; the build ends with this.
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
