# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What holds, what does not

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full: the committed rows are shown at each
checkpoint = None  # not used: each claim names its networks
device = "auto"  # not used
seeds = None  # not used

# %% tags=["remove-input"]
from collections import Counter

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML

from dode.experiments import plots
from dode.experiments.claims import CLAIMS

plots.style()
counts = Counter(claim.verdict for claim in CLAIMS)
order = ["holds", "holds in part", "not here", "not tested"]
words = ", ".join(f"{counts[v]} {v.replace('holds', 'hold') if counts[v] > 1 else v}" for v in order if counts[v])
short = (
    "Asked: which claims of the two papers hold on the small networks of this book?\n"
    f"Of {len(CLAIMS)} claims: {words}. Each verdict is a condition on committed rows, and a test holds it to them."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input"]
listed = pd.DataFrame({
    "claim": [c.text for c in CLAIMS], "paper, section": [c.source for c in CLAIMS],
    "verdict": [f"<b>{c.verdict}</b>" for c in CLAIMS], "number": [c.finding()[0] for c in CLAIMS],
    "page": [f'<a href="{c.page}.html">{c.page.replace("_", " ")}</a>' for c in CLAIMS],
})  # fmt: skip
HTML(listed.to_html(index=False, border=0, escape=False))

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "claims-verdicts", "caption": "Claims of the two papers by verdict."}}
figure, ax = plt.subplots(figsize=(6, 1.9))
ax.barh([v for v in order if counts[v]], [counts[v] for v in order if counts[v]], color="C0")
ax.invert_yaxis()
ax.set(xlabel="claims")
plt.show()

# %% [markdown]
# D-ODE: {cite:t}`kim2024dode`, its main text; the supplement was not at hand. DLMS: {cite:t}`liang2025lms`, of which only the abstract was at hand; what is marked second-hand comes from an independent reimplementation.
#
# **FD** is the Fréchet distance in the features of a small classifier, not FID. *Holds* means: in the direction that the paper says, on Fashion-MNIST, with small networks. Numbers of samples and blocks of seeds stand on each page.

# %% tags=["nbval-check-output", "hide-input"]
print(f"verdicts that agree with the committed rows: {sum(c.finding()[1] for c in CLAIMS)} of {len(CLAIMS)}")
