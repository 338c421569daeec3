"""The decision as a file that a program can apply."""
