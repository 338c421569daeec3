"""Source of kvray's own modules that a snippet carries along, because no library has what is in them."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, kw_only=True)
class EmbeddedModule:
    """A module taken apart: its import statements, one a line, and what follows them."""

    imports: tuple[str, ...]
    body: str


def embedded_module(name: str) -> EmbeddedModule:
    """The module `name` of this package, which imports nothing of kvray's."""
    source = files("kvray.engines.transformers").joinpath(f"{name}.py").read_text(encoding="utf-8")
    statements = ast.parse(source).body
    imports = [one for one in statements if isinstance(one, ast.Import | ast.ImportFrom)]
    first = next(one for one in statements[1:] if one not in imports)
    body = "\n".join(source.splitlines()[first.lineno - 1 :])
    return EmbeddedModule(imports=tuple(ast.unparse(one) for one in imports), body=body)


def arranged_imports(lines: list[str]) -> str:
    """Import statements without repetition: of the future, of the standard library, of others, each sorted."""
    groups: tuple[list[str], ...] = ([], [], [])
    for line in _merged(lines):
        module = line.split()[1].partition(".")[0]
        groups[0 if module == "__future__" else 1 if module in sys.stdlib_module_names else 2].append(line)
    ordered = ["\n".join(sorted(group, key=lambda line: (line.startswith("from"), line))) for group in groups if group]
    return "\n\n".join(ordered)


def _merged(lines: list[str]) -> list[str]:
    """Each statement once, and one for all names from the same module."""
    names: dict[str, set[str]] = {}
    for line in lines:
        module, _, imported = line.removeprefix("from ").partition(" import ")
        names.setdefault(module, set()).update(imported.split(", ") if imported else [])
    return [f"from {module} import {', '.join(sorted(found))}" if found else module for module, found in names.items()]
