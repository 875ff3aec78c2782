from typing import Any

ffi: Any
"""Makes and reads the values of csrc/uring.h."""
lib: Any
"""Its functions and constants. Every call lets go of the GIL."""
