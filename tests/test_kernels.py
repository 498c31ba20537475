"""Kernels that are forks of a warm process: the same outputs, the caller's environment, and no process left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from book import kernels

CELL = """
import os, sys
import matplotlib.pyplot as plt
print(os.environ["MARK"], os.getcwd(), plt.get_backend(), "dode.experiments.plots" in sys.modules, flush=True)
plt.plot([1, 2])
plt.show()
"""


def outputs(folder: Path) -> list[dict]:
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells[0].outputs


@pytest.mark.slow
def test_a_warm_kernel_is_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "before")
    usual = outputs(tmp_path)
    before = os.environ.get("JUPYTER_PATH")
    with kernels.warm_kernels():
        monkeypatch.setenv("MARK", "within")
        warm = outputs(tmp_path)
        manager, client = start_new_kernel(cwd=str(tmp_path))
        client.execute_interactive("import os; open('pid', 'w').write(str(os.getpid()))")
        kernel = Path("/proc", (tmp_path / "pid").read_text())
        assert kernel.exists()
        manager.shutdown_kernel(now=True)  # kills what it has started
        until(lambda: not kernel.exists())
        manager, client = start_new_kernel()
        client.execute("import os; os.kill(os.getpid(), 9)")
        until(lambda: not manager.is_alive())
    assert os.environ.get("JUPYTER_PATH") == before
    assert usual[0].text.strip() == f"before {tmp_path} module://matplotlib_inline.backend_inline False"
    assert warm[0].text.strip() == f"within {tmp_path} module://matplotlib_inline.backend_inline True"
    assert warm[1] == usual[1]  # the picture, bit for bit


def until(there: Callable[[], bool]) -> None:
    for _ in range(100):
        if there():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to that in ten seconds")


@pytest.mark.slow
def test_without_a_server_the_client_is_a_usual_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "-S", kernels.__file__, "client", str(tmp_path / "none"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\S+\s*", done.stdout), done.stderr
