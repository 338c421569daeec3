"""The command `kvray`, and `python -m kvray`."""

import os
import sys

from kvray.search_paths import leave_out_working_folder

_INTERRUPTED = 130
_INTERNAL_ERROR = 70
"""As `kvray.errors.KvrayError.exit_code`, which may not be importable."""


def main() -> None:
    """Entry point of the console script; ends the process."""
    left_out = leave_out_working_folder()  # before anything else is imported
    import signal

    is_plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not ignored, as by nohup
    if is_plain:
        signal.signal(signal.SIGINT, _leave)
    try:
        from kvray.cli.app import main
    except ImportError:  # a broken installation: Python would end with 1, which says that a check failed
        sys.excepthook(*sys.exc_info())
        sys.exit(_INTERNAL_ERROR)
    try:
        if is_plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(left_out=left_out)
    except KeyboardInterrupt:  # before or after the command, which tells of one itself
        sys.exit(_INTERRUPTED)


def _leave(*_: object) -> None:
    """Ctrl-C while Python imports: nothing has begun that should be told of."""
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
