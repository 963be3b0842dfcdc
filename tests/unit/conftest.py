"""A quarter of Hypothesis' usual examples, so the whole layer stays below ten seconds and runs often.

No limit of time for one of them, which a busy machine would miss.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit",
    max_examples=25,
    database=None,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")
