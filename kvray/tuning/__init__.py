"""A sweep from the first look at the model to the last report: preview, measuring, records, outcome."""
