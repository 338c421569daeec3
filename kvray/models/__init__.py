"""What all engines ask of a model's files: where they are, whether they are whole, which weights they hold.

Imports neither torch nor an engine.
"""
