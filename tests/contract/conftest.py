"""The kit of engine tests shows its values when it fails, as test modules do."""

import pytest

pytest.register_assert_rewrite("kvray.testing")
