"""The messages to the kernel over netlink, and its answers."""
