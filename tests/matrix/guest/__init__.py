"""The scenarios that run inside an emulated machine, with the installed package and the distribution's
Python. Each prints a line on the console; the host reads those lines."""
