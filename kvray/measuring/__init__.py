"""How one trial is measured on this machine, from its process's environment to its record, for slots and checks."""
