"""What a check leaves for people and for the programs of a CI: one renderer a file, all pure but the step's summary."""
