"""Runs the alerts and the dashboard of docs/monitoring against real data: `make monitoring`."""
