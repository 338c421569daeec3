"""The command `kvray`, and `python -m kvray`."""

from kvray.search_paths import leave_out_working_folder


def main() -> None:
    """Entry point of the console script; ends the process."""
    left_out = leave_out_working_folder()  # before anything else is imported
    from kvray.cli.app import main

    main(left_out=left_out)


if __name__ == "__main__":
    main()
