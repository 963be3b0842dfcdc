"""A quarter of Hypothesis' usual examples: the whole layer stays below ten seconds, and runs often."""

from hypothesis import settings

settings.register_profile("unit", max_examples=25, database=None, print_blob=True)
settings.load_profile("unit")
