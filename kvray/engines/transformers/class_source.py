"""What the source of a library's class says of attention: read as text, because importing the class takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from kvray.candidate import AttentionBackend
from kvray.engines.transformers.model_class import (
    SUPPORT_FLAGS,
    architecture_of,
    auto_class_name,
    classes_by_type,
)

_WITHOUT_FLAGS = {"GenerationMixin", "GradientCheckpointingLayer"}
"""Bases from other modules that say nothing of attention."""
_ROOT = "PreTrainedModel"
"""Base of every model; each flag is false there."""


def declared_attentions(config: Any) -> tuple[AttentionBackend, ...] | None:
    """What `model_class.missing_attentions` says of the class that the library makes of `config`.

    `None`: the source does not tell, because it computes a flag or takes a base from elsewhere.
    """
    architecture = architecture_of(config)
    named = classes_by_type()[auto_class_name(architecture)].get(config.model_type)
    names = (named,) if isinstance(named, str) else tuple(named or ())
    source = _modeling_file(config.model_type)
    if not names or source is None:
        return None
    classes = _classes(source)
    try:
        flags = {
            flag: _value(classes, architecture if architecture in names else names[0], flag) for flag in SUPPORT_FLAGS
        }
    except LookupError:
        return None
    return tuple(one for flag, attentions in SUPPORT_FLAGS.items() if not flags[flag] for one in attentions)


def _modeling_file(model_type: str) -> Path | None:
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    module = model_type_to_module_name(model_type)
    package = importlib.util.find_spec(f"transformers.models.{module}")
    if package is None or package.origin is None:
        return None
    found = Path(package.origin).with_name(f"modeling_{module}.py")
    return found if found.is_file() else None


@cache
def _classes(source: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _value(classes: dict[str, ast.ClassDef], name: str, flag: str) -> bool:
    """The value of `flag` in the class `name`, its own or that of the first base that has one.

    Raises:
        LookupError: the source does not tell.
    """
    found = _found(classes, name, flag)
    if found is None:
        raise LookupError(f"{name} has no {flag}.")
    return found


def _found(classes: dict[str, ast.ClassDef], name: str, flag: str) -> bool | None:
    if name == _ROOT:
        return False
    if name in _WITHOUT_FLAGS:
        return None
    node = classes.get(name)
    if node is None:
        raise LookupError(f"{name} is not defined in this file.")
    own = _own(node, flag)
    if own is not None:
        return own
    values = (_found(classes, base.id if isinstance(base, ast.Name) else "", flag) for base in node.bases)
    return next((value for value in values if value is not None), None)


def _own(node: ast.ClassDef, flag: str) -> bool | None:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            targets: list[ast.expr] = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        else:
            continue
        if any(isinstance(target, ast.Name) and target.id == flag for target in targets):
            if not isinstance(statement.value, ast.Constant):
                raise LookupError(f"{flag} is computed.")
            return bool(statement.value.value)
    return None
