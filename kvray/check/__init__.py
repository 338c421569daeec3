"""The regression gate: does a configuration still do what it did? Measures on this machine, without Ray."""
