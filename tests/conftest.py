"""What all tests share."""

from hypothesis import settings

# The same examples in every run: a suite that decides about landing must not depend on luck.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
