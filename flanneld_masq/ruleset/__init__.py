"""Which rules are wanted, in which backend, and how do they differ from what the kernel holds? Pure."""
