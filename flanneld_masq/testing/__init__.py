"""For authors of plugins: a backend in memory that behaves, and the conformance suite that every backend passes.

docs/plugins.md shows how to use both. Nothing in here imports pytest, or anything else that a node lacks.
"""

from .conformance import BackendConformance, Bench
from .memory import MemoryBackend, MemoryKernel, MemoryRule, memory_backend_type

__all__ = ["BackendConformance", "Bench", "MemoryBackend", "MemoryKernel", "MemoryRule", "memory_backend_type"]
