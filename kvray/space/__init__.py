"""Which configurations exist for a model on a device, and why others do not."""
