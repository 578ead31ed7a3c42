"""Programs that measure how fast this library is, and beside what."""
