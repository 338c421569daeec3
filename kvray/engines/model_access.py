"""`ModelAccess`: what the driver asks an engine about a model's files, on the machine where they are."""

from __future__ import annotations

from dataclasses import replace

from kvray.engines.base import DeviceFacts, EngineAdapter, ModelInfo, ModelRequest


class ModelAccess:
    """The model's files on this machine. A subclass asks a machine that will measure.

    What an adapter raises, each of these raises.
    """

    def check(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        """`EngineAdapter.check_model`."""
        adapter.check_model(request)

    def described(
        self, adapter: EngineAdapter, request: ModelRequest, *, adapts: bool, device: DeviceFacts | None
    ) -> ModelInfo:
        """`EngineAdapter.describe_model`, and `adapt_to_device` for `device` where it `adapts`."""
        info = adapter.describe_model(request)
        return adapter.adapt_to_device(request, info, device) if adapts else info

    def check_quickly(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        """`EngineAdapter.check_weights`, as far as that takes no time."""
        adapter.check_weights(request, quick=True)

    def identified(self, adapter: EngineAdapter, request: ModelRequest, info: ModelInfo) -> ModelInfo:
        """`EngineAdapter.identify_model`."""
        return adapter.identify_model(request, info)

    def readied(self, adapter: EngineAdapter, request: ModelRequest, info: ModelInfo) -> tuple[ModelInfo, ModelRequest]:
        """The model with its weights identified, fetched and checked, and the request for this very version: the hub
        may get another one while the sweep runs."""
        info = self.identified(adapter, request, info)
        request = replace(request, model_id=info.model_id, revision=info.revision)
        self.fetch(adapter, request)
        return info, request

    def fetch(self, adapter: EngineAdapter, request: ModelRequest) -> None:
        """`EngineAdapter.fetch_weights` and `check_weights`."""
        adapter.fetch_weights(request)
        adapter.check_weights(request)
