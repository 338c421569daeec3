"""Commands that run on a remote cluster: sent, followed, stopped and fetched through Ray's job server, over HTTP."""
