"""Which cases run: those that were asked for, without those that this machine cannot run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kvray.candidate import Candidate
from kvray.check.suite.cases import Case, suite_cases
from kvray.check.suite.record import SkippedCase
from kvray.engines.base import DeviceFacts
from kvray.engines.interpreter import chosen_python
from kvray.engines.registry import get_engine
from kvray.errors import EngineError, InvalidValueError, NoCandidatesError, did_you_mean
from kvray.space.constraints import SpaceFacts
from kvray.space.menu import available_here


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which cases a user wants.

    Attributes:
        engines: names; empty: all.
        only: patterns of names with `*`, of which one must fit; empty: all.
        quick: whether the reduced set is enough.
        known: names that a record has; `None`: there is none to compare with.
    """

    engines: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    quick: bool = False
    known: frozenset[str] | None = None

    def takes(self, case: Case) -> bool:
        """Whether `case` is wanted."""
        named = not self.only or any(fnmatchcase(case.name, pattern) for pattern in self.only)
        of_engine = not self.engines or case.engine in self.engines
        is_known = self.known is None or case.name in self.known
        return named and of_engine and is_known and (case.is_quick or not self.quick)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The cases that run, in order, and those that were wanted and cannot."""

    cases: tuple[Case, ...]
    skipped: tuple[SkippedCase, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines of the cases that run."""
        return tuple(dict.fromkeys(case.engine for case in self.cases))


def choose_cases(asked: Asked, device: DeviceFacts) -> Chosen:
    """What of the suite is wanted, and can run on `device`.

    Raises:
        InvalidValueError: there is no such engine or case.
        NoCandidatesError: none of the wanted ones can run here.
    """
    obstacles = availability(asked, device)
    skipped = tuple(SkippedCase(name=name, reason=why) for name, why in obstacles.items() if why is not None)
    cases = tuple(case for case in suite_cases() if case.name in obstacles and obstacles[case.name] is None)
    if not cases:
        why = "; ".join(dict.fromkeys(one.reason for one in skipped)) or "none is both wanted and in the reduced set"
        raise NoCandidatesError(f"No case of the suite can run here: {why}", hint="kvray suite list shows all of them.")
    return Chosen(cases=cases, skipped=skipped)


def availability(asked: Asked, device: DeviceFacts) -> dict[str, str | None]:
    """The wanted cases by name, each with what stands in its way on `device`, in the words of the engines' menus.

    Raises:
        InvalidValueError: there is no such engine or case.
    """
    known = suite_cases()
    _check_asked(asked, known)
    check = functools.cache(lambda engine: _engine_check(engine, device))
    return {case.name: check(case.engine)(case.candidate) for case in known if asked.takes(case)}


def _check_asked(asked: Asked, known: Sequence[Case]) -> None:
    engines, names = list(dict.fromkeys(case.engine for case in known)), [case.name for case in known]
    for engine in asked.engines:
        if engine not in engines:
            raise InvalidValueError.not_one_of("engine of the suite", engine, engines)
    for pattern in asked.only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InvalidValueError(
                f"No case of the suite is called {pattern!r}.",
                hint=f"{did_you_mean(pattern, names)}kvray suite list shows all of them.",
            )


def _engine_check(engine: str, device: DeviceFacts) -> Callable[[Candidate], str | None]:
    """What stands in the way of one of the engine's candidates on `device`."""
    try:
        adapter = get_engine(engine)
        if chosen_python(engine, {}) is None:  # else the side looks into the engine's own Python
            adapter.check_installed()
    except EngineError as error:
        missing = error.message
        return lambda _: missing
    menu, facts = available_here(adapter.axes(device)), SpaceFacts(device=device.device, dtypes=frozenset())
    return lambda candidate: menu.check(candidate, facts)
