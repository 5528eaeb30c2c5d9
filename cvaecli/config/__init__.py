"""Run configs: the schema of every key, and how a config is read and checked."""
