"""The command `kvray`, and `python -m kvray`."""

import sys

from kvray.search_paths import leave_out_working_folder

_INTERNAL_ERROR = 70
"""As `kvray.errors.KvrayError.exit_code`, which may not be importable."""


def main() -> None:
    """Entry point of the console script; ends the process."""
    left_out = leave_out_working_folder()  # before anything else is imported
    try:
        from kvray.cli.app import main
    except ImportError:  # a broken installation: Python would end with 1, which says that a check failed
        sys.excepthook(*sys.exc_info())
        sys.exit(_INTERNAL_ERROR)
    main(left_out=left_out)


if __name__ == "__main__":
    main()
