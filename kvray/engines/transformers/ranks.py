"""`Ranks`: the further processes of a model that is split over several by tensor parallelism, as rank 0 sees them.

They are processes of their own (`rank`) that do what rank 0 does, call by call. Rank 0 notices when one dies, and when
one fails while the others wait for it, and none outlives it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from kvray.engines.base import CrashedError, OutOfMemoryError, UnsupportedError
from kvray.engines.failures import give_up, tell_crash
from kvray.engines.transformers.rank import Rank, RankTask
from kvray.errors import KvrayError

IN_STEP_S = 3.0
"""In which all ranks end a call after one of them has failed in it, if they are still in step; in which rank 0 comes
back from the library after another rank has died."""
_LOOK_S = 0.5
_CLOSE_S = 3.0
_KINDS: dict[str, type[KvrayError]] = {"memory": OutOfMemoryError, "unsupported": UnsupportedError}


def kind_of(error: BaseException) -> str:
    """By which `Ranks` makes the same error again."""
    return next((kind for kind, type_ in _KINDS.items() if isinstance(error, type_)), "error")


class Ranks:
    """Ranks 1 to N-1, started with the tasks given. To be used by the thread that makes it, with which they end.

    Raises:
        CrashedError: from any call, when a rank is dead.
        OutOfMemoryError, UnsupportedError: a rank said so while rank 0 saw nothing of the kind.
    """

    def __init__(self, tasks: Sequence[RankTask], *, leave: Callable[[str], Any] = give_up) -> None:
        self._leave = leave
        self._changed = threading.Condition()
        self._calls = 0
        self._in_call = False
        self._is_closed = False
        self._lost: KvrayError | None = None
        self._ranks: list[Rank] = []
        for task in tasks:
            self._ranks.append(Rank(task, self._ranks))
        for one in self._ranks:
            one.listen()
        self._listener = threading.Thread(target=self._listen, name="kvray-ranks", daemon=True)
        self._listener.start()
        try:
            self._await_answers()  # each says when it is ready to load
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of those that are alive."""
        return tuple(one.process.pid for one in self._ranks if one.process.poll() is None)

    @property
    def in_step(self) -> bool:
        """Whether all are alive and none is in the middle of a call."""
        with self._changed:
            return self._lost is None and not self._in_call

    def together(self, name: str, *arguments: Any, mine: Callable[[], Any]) -> tuple[Any, ...]:
        """Have all ranks do the call `name`, which on rank 0 is `mine`. Returns what each gave, rank 0's first."""
        with self.call(name, *arguments) as answers:
            own = mine()
        return (own, *answers)

    @contextlib.contextmanager
    def call(self, name: str, *arguments: Any) -> Iterator[list[Any]]:
        """The other ranks do the call `name` while rank 0 does its own within the `with`. At its end the list has what
        each of the others gave."""
        answers: list[Any] = []
        self._tell(name, arguments)
        try:
            yield answers
        except GeneratorExit:  # rank 0 has done all of it, and its reader wants no more
            self._await_answers()
            raise
        except BaseException as error:
            self._settle(error)
            raise
        answers += self._await_answers()

    def close(self) -> None:
        """End all of them: politely if they are in step. Idempotent."""
        in_step = self.in_step
        self._is_closed = True
        for one in self._ranks:
            one.end(politely=in_step)
        self._listener.join(_CLOSE_S)
        for one in self._ranks:
            one.connection.close()

    def _tell(self, name: str, arguments: tuple[Any, ...]) -> None:
        with self._changed:
            if self._lost is not None:
                raise self._lost
            for one in self._ranks:
                one.begin()
            self._calls, self._in_call = self._calls + 1, True
        for one in self._ranks:
            with contextlib.suppress(OSError):  # it is dead, which the listener tells
                one.connection.send((name, arguments))

    def _await_answers(self) -> list[Any]:
        """What every rank has given in this call. It has no limit of its own: the trial's phase has."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or all(one.answer for one in self._ranks))
            self._end_call()
            failed = [(one, one.answer.failure) for one in self._ranks if one.answer and one.answer.failure]
            if self._lost is None and failed:
                self._lost = _error_of(*failed[0])
            if self._lost is not None:
                raise self._lost
            return [one.answer.value for one in self._ranks if one.answer]

    def _settle(self, error: BaseException) -> None:
        """After rank 0's own `error`: if the others have failed alike, all are in step, and the error stands. Otherwise
        nothing more can be done together.

        Raises:
            KvrayError: another rank was the first.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._lost or all(one.answer for one in self._ranks), timeout=IN_STEP_S)
            self._end_call()
            lost = self._lost
            in_step = all(one.answer and one.answer.failure for one in self._ranks)
            if lost is None and not in_step:
                self._lost = CrashedError("the ranks are no longer in step, because rank 0 failed alone")
        if lost is not None:
            raise lost from error

    def _end_call(self) -> None:
        self._in_call = False
        self._changed.notify_all()

    def _listen(self) -> None:
        """In a thread of its own: takes the answers, and sees who dies or keeps the others waiting."""
        while not self._is_closed:
            open_ = {one.connection: one for one in self._ranks if not one.is_gone}
            for ready in wait(list(open_), timeout=_LOOK_S) if open_ else ():
                open_[ready].receive()  # type: ignore[index]
            gone = next((one for one in self._ranks if one.has_ended()), None)
            with self._changed:
                self._changed.notify_all()
                call = self._calls
                failed = next((one for one in self._ranks if one.answer and one.answer.failure), None)
            if self._is_closed:
                return
            if gone is not None:
                self._note_lost(gone.death())
                self._wait_for_rank_0(call)
                return
            if failed is not None and failed.answer and failed.answer.failure and self._is_stuck(call):
                self._note_lost(_error_of(failed, failed.answer.failure))
                for one in self._ranks:  # the end of its connections brings rank 0 back
                    one.process.kill()
                self._wait_for_rank_0(call)
                return
            if not open_:
                time.sleep(_LOOK_S)

    def _note_lost(self, error: KvrayError) -> None:
        tell_crash(error.message)
        with self._changed:
            self._lost = self._lost or error
            self._changed.notify_all()

    def _is_stuck(self, call: int) -> bool:
        """Whether rank 0 goes on with a call in which another rank has failed."""
        with self._changed:
            return not self._changed.wait_for(lambda: not self._in_call or self._calls != call, timeout=IN_STEP_S)

    def _wait_for_rank_0(self, call: int) -> None:
        """Gloo returns with an error when a rank dies; NCCL may wait for ever, and then nobody else ends it."""
        with self._changed:
            self._changed.notify_all()
        if self._is_stuck(call) and not self._is_closed:
            self._leave(str(self._lost))


def _error_of(rank: Rank, failure: tuple[str, str]) -> KvrayError:
    kind, text = failure
    return _KINDS.get(kind, CrashedError)(f"rank {rank.rank}: {text}")
