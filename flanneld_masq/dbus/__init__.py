"""What does the daemon offer on the system bus, and which signals does it act on?"""
