"""A few calls on an installed nova, to run in an environment that has only its base dependencies."""

from pathlib import Path

import nova

assert "site-packages" in Path(nova.__file__).parts, nova.__file__
for name in nova.__all__:
    getattr(nova, name)

a = nova.VectorClock({"east": 2, "west": 1})
b = nova.VectorClock({"east": 1, "west": 2})
assert a.compare(b) is nova.Order.CONCURRENT
assert a.merge(b).compare(a) is nova.Order.AFTER
print(f"nova {nova.__version__}: {len(nova.__all__)} public names load in an empty environment")
