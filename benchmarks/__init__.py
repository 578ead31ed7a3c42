"""Programs that measure how fast this library is, and beside what."""

from jrobust import xla_flags

xla_flags.set_defaults()  # as the commands do; the backend, which reads them, starts with the first array
