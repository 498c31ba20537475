"""The options of ``--method``, read from the declarations in :mod:`dode.distillation`.  Nothing here imports torch."""

from __future__ import annotations

import argparse
import ast
import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "distillation"
MOST = 1_000_000  # seeds, images, network evaluations; more is a slip of the keyboard


def count(text: str) -> int:
    """A whole number from 1 to :data:`MOST`."""
    if not re.fullmatch("[0-9]{1,18}", text) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST:,}")
    return int(text)


@dataclass(frozen=True)
class Method:
    """What the file of a distiller declares; to import it would take seconds."""

    name: str
    about: str  # the first sentence of its docstring
    facts: dict[str, Any]  # the plain values in its decorator
    options: dict[str, dict[str, Any]]  # those that can be typed, as argparse has them


@functools.cache
def methods(folder: Path = FOLDER) -> dict[str, Method]:
    """The functions with the decorator ``@distiller`` in the files of ``folder``, in the order of the book's page."""
    found = list[Method]()
    for file in sorted(folder.glob("*.py")):
        if "\n@distiller(" in (text := file.read_text(encoding="utf-8")):
            body = ast.parse(text).body
            types = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
            for function in (node for node in body if isinstance(node, ast.FunctionDef)):
                calls = (call for call in function.decorator_list if isinstance(call, ast.Call))
                found += [declared(function, c, types) for c in calls if ast.unparse(c.func) == "distiller"]
    return {m.name: m for m in sorted(found, key=lambda m: m.facts.get("place", math.inf))}


def declared(function: ast.FunctionDef, call: ast.Call, types: dict[str, ast.expr]) -> Method:
    """A function and its decorator; ``types`` are the names that its file gives to types."""
    text, options = ast.get_docstring(function) or "", dict[str, dict[str, Any]]()
    for parameter, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if how := typed(members(parameter.annotation, types)):
            about = re.search(rf"^{parameter.arg}\n((?:    .*\n?)+)", text, re.MULTILINE)
            usual = default.value if isinstance(default, ast.Constant) else None
            options[parameter.arg] = how | dict(help=first_sentence(about[1]) if about else "", default=usual)
    facts = {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}
    return Method(function.name.replace("_", "-"), first_sentence(text), facts, options)


def members(annotation: ast.expr | None, types: dict[str, ast.expr]) -> list[ast.expr]:
    """Those of ``A | B | None``."""
    if isinstance(annotation, ast.BinOp):
        return members(annotation.left, types) + members(annotation.right, types)
    known = types.get(annotation.id) if isinstance(annotation, ast.Name) else None
    return members(known, types) if known else [annotation] if annotation else []


def typed(kinds: list[ast.expr]) -> dict[str, Any]:
    """How a parameter of these types is given on the command line; empty if it cannot be."""
    for kind in kinds:
        if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Literal":
            choices = ast.literal_eval(kind.slice)
            return dict(choices=choices, type=type(choices[0]))
    names = set(map(ast.unparse, kinds))
    if "bool" in names:
        return dict(action=argparse.BooleanOptionalAction)
    return dict(type=float if "float" in names else count, metavar="N") if names & {"int", "float"} else {}


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, as plain text."""
    first = re.split(r"[.;]\s|\.$", " ".join(text.split()))[0]
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`|``", r"\1", first).replace("%", "%%")


def listed() -> str:
    """A line a method, for ``dode distill --help``."""
    about = {m.name: f"({m.facts['source']}) {m.about}" if "source" in m.facts else m.about for m in methods().values()}
    return "\n".join(f"  {name:13} {text}" for name, text in about.items())


def add_options(command: argparse.ArgumentParser) -> None:
    """The options of all methods; those that are not given have the defaults of the function."""
    add = command.add_argument_group("options of methods").add_argument
    for name in dict.fromkeys(name for method in methods().values() for name in method.options):
        having = {m.name: m.options[name] for m in methods().values() if name in m.options}
        usual = dict.fromkeys(str(option["default"]) for option in having.values() if option["default"] is not None)
        about = next((option["help"] for option in having.values() if option["help"]), "")
        text = f"{', '.join(having)}: {about}" + (f" (default: {' or '.join(usual)})" if usual else "")
        how = next(iter(having.values())) | dict(help=text, default=None)
        add(f"--{name.replace('_', '-')}", dest=f"own_{name}", **how)


def own_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options given that the method has.  ValueError for one that it has not."""
    method = methods()[args.method]
    given = {k.removeprefix("own_"): v for k, v in vars(args).items() if k.startswith("own_") and v is not None}
    foreign = [name for name in given if name not in method.options]
    for name, fact, usual in (("compare", "loss", "auto"), ("grid", "grid", "default")):
        if method.facts.get(fact, usual) is None and getattr(args, name) != usual:
            foreign.append(name)
    if foreign:
        raise ValueError(f"--method {args.method} has no option --{foreign[0].replace('_', '-')}; leave it out")
    return given
