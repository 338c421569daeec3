from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvray.analysis.aggregate import Metrics
from kvray.analysis.launching import AxisSearch, EveryCandidate
from kvray.candidate import AttentionBackend, CacheStrategy, Candidate, DType
from kvray.workload import Limits
from unit_samples import SPACE, metrics_of  # type: ignore[import-not-found]

Measure = Callable[[Candidate], Metrics]
