"""flanneld-masq keeps a flannel node's masquerade rules right."""

__version__ = "0.1.0"
