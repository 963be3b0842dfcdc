"""What is sent to the kernel over netlink, and what comes back?"""
