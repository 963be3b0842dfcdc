"""The cost of events on a whole fleet: measured on one real daemon, multiplied and placed in time by a model."""
