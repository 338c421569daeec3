"""Who a watch tells, one a file. `open_sinks` makes those that a user asked for."""

from kvray.check.watch.sinks.asked import AskedSinks, open_sinks

__all__ = ["AskedSinks", "open_sinks"]
