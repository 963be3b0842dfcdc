"""Tools for authors of plugins: a correct backend in memory, and the conformance suite that every backend must pass.

docs/plugins.md shows how to use both. Nothing here imports pytest, or anything else that a node lacks.
"""

from flanneld_masq.testing.conformance import BackendConformance, Bench
from flanneld_masq.testing.fake_backend import MemoryBackend, MemoryKernel, MemoryRule, memory_backend_type

__all__ = ["BackendConformance", "Bench", "MemoryBackend", "MemoryKernel", "MemoryRule", "memory_backend_type"]
