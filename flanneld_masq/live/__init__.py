"""Follows real packets through the real rules: those of an existing flow, and those of a throwaway pod."""
