"""How are the files read that the daemon depends on: configuration, subnet files, net-conf.json?"""
