"""How the manifest of a sweep or of a batch is read: it must be whole, not of a newer kvray, and that of what was asked
for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from kvray.errors import ResultsError, describe_problems

M = TypeVar("M", bound=BaseModel)
_LISTED = 10
"""Ids that an error names."""


@dataclass(frozen=True, kw_only=True)
class ManifestKind(Generic[M]):
    """How one kind of manifest is read.

    Attributes:
        what: it tells of, for messages.
        id_field, version_field: of `model`; the latter's default is the newest version that this kvray reads.
    """

    what: str
    model: type[M]
    id_field: str
    version_field: str

    def parse(self, data: bytes, wanted: str) -> M:
        """The manifest of `wanted`.

        Raises:
            ResultsError: `data` is malformed, of a newer version, or another's manifest.
        """
        told = f"The manifest of {self.what} {wanted!r}"
        newest = self.model.model_fields[self.version_field].default
        try:
            version = json.loads(data).get(self.version_field, newest)
        except (ValueError, AttributeError, RecursionError) as error:
            raise ResultsError(f"{told} is not a JSON object: {error}.") from error
        if not isinstance(version, int) or version > newest:
            raise ResultsError(
                f"{told} has version {version}, this kvray reads up to {newest}.", hint="Use a newer kvray."
            )
        try:
            manifest = self.model.model_validate_json(data)
        except ValidationError as error:
            raise ResultsError(f"{told} is not valid: {describe_problems(error)}.") from error
        if (found := getattr(manifest, self.id_field)) != wanted:
            raise ResultsError(f"{told} is that of {self.what} {found!r}.")
        return manifest

    def missing(self, wanted: str, folder: str, held: Sequence[str]) -> ResultsError:
        """The error for a results folder that holds others, the newest last in `held`."""
        known = ", ".join(held[-_LISTED:])
        return ResultsError(
            f"Results folder {folder!r} holds no {self.what} {wanted!r}.",
            hint=f"It holds: {known}." if known else "It holds none.",
        )
