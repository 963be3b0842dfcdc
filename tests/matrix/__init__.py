"""The package on the kernels and machines that people run, each emulated. `README.md` explains."""
