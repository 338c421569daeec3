"""For the tests of engines, kvray's own and those of other packages: the contract that every engine must keep.

Subclass `EngineContract` of `kvray.testing.engine_contract` in a test module and name the engine and a small model.
The kit needs pytest, which kvray does not install. Put `pytest.register_assert_rewrite("kvray.testing")` into your
`conftest.py`, so that a failure shows the values.
"""
