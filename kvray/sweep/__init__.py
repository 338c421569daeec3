"""Runs trials under Ray Tune; the only importer of ray."""
