"""How does the daemon read its input files: configuration, subnet files, net-conf.json?"""
