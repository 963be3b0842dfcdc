"""A long random test of the daemon: `make chaos`. See README.md."""
