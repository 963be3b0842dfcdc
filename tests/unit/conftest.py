"""Half of Hypothesis' usual examples: the whole layer stays below ten seconds, and runs often."""

from hypothesis import settings

settings.register_profile("unit", max_examples=50)
settings.load_profile("unit")
