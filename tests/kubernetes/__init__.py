"""Checks manifests and chart with packages that no other test needs: `make kubernetes-check`."""
