"""A quarter of Hypothesis' usual examples, and a tenth in `make check`, so the layer takes seconds and runs often.

No limit of time for one of them, which a busy machine would miss.
"""

from hypothesis import HealthCheck, settings

from ..common import amount

settings.register_profile(
    "unit",
    max_examples=amount(25, quick=10),
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")
