"""How does the daemon run: start, stop, reload, status, journal, systemd?"""
