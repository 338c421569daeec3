"""What can run a model. Each engine is a folder of its own behind the contract in `base`; none knows another."""
