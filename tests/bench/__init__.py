"""How fast and how small it is, measured beside flannel: `make bench`. README.md says how to read it."""
