"""A second fake engine, with half the memory, that a sweep takes beside the first; and how a test installs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from kvray.candidate import Candidate, DeviceType
from kvray.engines.base import LoadedModel, ModelInfo, ModelRequest
from kvray.testing.fake import FakeAdapter, FakeModel
from kvray.workload import WorkloadProfile


class LeanModel(FakeModel):
    """Needs half the memory."""

    def peak_memory_mib(self) -> float | None:
        """Half of what the fake engine makes up."""
        peak = super().peak_memory_mib()
        return None if peak is None else peak / 2


class SecondAdapter(FakeAdapter):
    """Has a revision and an architecture of its own for the same model, and holds half as many tokens."""

    name: ClassVar[str] = "second"

    def describe_model(self, request: ModelRequest) -> ModelInfo:
        """As of another file format."""
        info = super().describe_model(request)
        return replace(
            info,
            revision="second-1",
            architecture="Second",
            max_context=2048,
            packing="Q4_1",
            notes=("The weights are packed.",),
        )

    def load(
        self, request: ModelRequest, candidate: Candidate, device: DeviceType, profile: WorkloadProfile
    ) -> LoadedModel:
        """Refuses the model as another engine has it, and other engines' candidates."""
        assert (candidate.engine, request.revision) == (self.name, "second-1")
        return LeanModel(request, candidate)

    def memory_note(self, device: DeviceType) -> str:
        """Another one than the first engine's."""
        return f"Memory on {device} is made up twice."


def install(folder: Path) -> None:
    """Make `folder`, which is to be on `sys.path`, tell of the engine as an installed package does."""
    metadata = folder / "second_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: second-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[kvray.engines]\nsecond = second_engine:SecondAdapter\n")
