"""For the tests of engines, kvray's own and those of other packages: the contract that every engine must keep, and an
engine without a model, which misbehaves on command.

Subclass `EngineContract` of `kvray.testing.engine_contract` in a test module and name the engine and a small model.
The kit needs pytest, which kvray does not install; the engine `fake` of `kvray.testing.fake` does not. Put
`pytest.register_assert_rewrite("kvray.testing")` into your `conftest.py`, so that a failure shows the values.
"""
