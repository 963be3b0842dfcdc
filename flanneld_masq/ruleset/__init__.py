"""Which rules does the node need, in which backend, and how do they differ from those in the kernel? Pure."""
