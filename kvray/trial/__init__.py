"""One candidate in one fresh process, measured and ended in exactly one status."""
