"""The fake engine with a model that lies in a folder which only some processes are told of, as a node's own cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from typing_extensions import override

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import LoadedModel, ModelInfo, ModelRequest
from kvray.errors import ModelError
from kvray.testing.fake import FakeAdapter
from kvray.workload import WorkloadProfile

HOME = "KVRAY_TEST_MODEL_HOME"
"""Environment variable with the folder."""


class HomeboundAdapter(FakeAdapter):
    """Finds its model where `HOME` says, and nowhere else. `fetched` there tells by which process it was fetched."""

    @override
    def describe_model(self, request: ModelRequest) -> ModelInfo:
        return replace(super().describe_model(request), architecture=(self._home() / "name").read_text())

    @override
    def identify_model(self, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        return replace(info, revision=(self._home() / "revision").read_text())

    @override
    def fetch_weights(self, request: ModelRequest) -> None:
        fetched = self._home() / "fetched"
        if not fetched.exists():
            fetched.write_text(f"{os.getpid()} {request.revision}")

    @override
    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        if int((self._home() / "fetched").read_text().split()[0]) == os.getpid():
            raise ModelError("the trial had to fetch its weights")
        return super().load(request, candidate, device, profile)

    def _home(self) -> Path:
        folder = os.environ.get(HOME)
        if folder is None:
            raise ModelError("the model is not on this machine")
        return Path(folder)
