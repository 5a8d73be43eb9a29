"""Rules of custody: pure, synchronous, without I/O."""
