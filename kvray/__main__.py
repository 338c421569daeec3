"""`python -m kvray`."""

from kvray.cli.app import main

main()
