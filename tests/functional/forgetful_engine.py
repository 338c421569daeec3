"""The fake engine with candidates whose first process works and whose further ones do not."""

from __future__ import annotations

import os
from pathlib import Path

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import LoadedModel, ModelRequest
from kvray.testing.fake import FakeAdapter
from kvray.workload import WorkloadProfile


class ForgetfulAdapter(FakeAdapter):
    """Exits where a model is loaded again for a candidate with `where` in its label; `folder` is its memory."""

    def __init__(self, where: str, folder: Path) -> None:
        self._where = where
        self._folder = folder

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        seen = self._folder / candidate.candidate_id
        if self._where in candidate.label and seen.exists():
            os._exit(7)
        seen.touch()
        return super().load(request, candidate, device, profile)
