"""The fake engine with a model whose file can be exchanged, and candidates that fail until they are mended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import LoadedModel, ModelInfo, ModelRequest, OutOfMemoryError
from kvray.testing.fake import FakeAdapter
from kvray.workload import WorkloadProfile


class ChangingAdapter(FakeAdapter):
    """Its model is `revision`; candidates with `where` in their label run out of memory while `folder` holds no file
    `mended`."""

    def __init__(self, folder: Path, *, where: str = "eager", revision: str = "1") -> None:
        self._where = where
        self._mended = folder / "mended"
        self._revision = revision

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        return replace(super().describe_model(request), revision=self._revision)

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        if self._where in candidate.label and not self._mended.exists():
            raise OutOfMemoryError("not mended yet")
        return super().load(request, candidate, device, profile)
