"""The package's layers: what stands where, and which modules may import which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "dode"
# Each part imports from those before it alone, so there is no circle between parts.
LAYERS = (
    *("utils", "schedules", "tableau", "solvers", "denoisers", "sampling"),  # core
    "distillation",  # learning
    *("zoo", "metrics", "training", "diffusers"),  # models
    *("experiments", "cli", "__main__"),  # use
)
MODULES = {
    ".".join(("dode", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(name: str) -> set[str]:
    """The modules of dode that a module imports, in its functions too."""
    found = set[str]()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dode":
            whole = [f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__"]
            found |= {full if full in MODULES else node.module for full in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def test_each_layer_imports_only_from_those_below_it() -> None:
    part = lambda name: name.split(".")[1]  # noqa: E731
    wrong = [
        f"{name} imports {other}"
        for name in MODULES.keys() - {"dode"}
        for other in imported(name)
        if other == "dode" or LAYERS.index(part(other)) > LAYERS.index(part(name))
    ]
    assert not wrong


def test_no_modules_import_each_other() -> None:
    order = list(TopologicalSorter({name: imported(name) for name in MODULES}).static_order())  # or a CycleError
    assert len(order) == len(MODULES)


def test_the_root_holds_five_modules_and_the_parts_and_no_module_is_long() -> None:
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert modules == {"__init__", "__main__", "tableau", "sampling", "metrics"}
    assert {name.split(".")[1] for name in MODULES if "." in name} == set(LAYERS)
    assert not [f"{name}: {n}" for name, p in MODULES.items() if (n := len(p.read_text().splitlines())) > 300]
