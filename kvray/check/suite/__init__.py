"""The micro-suite: a small fixed set of models and configurations, for the CI of libraries that keep KV caches."""
