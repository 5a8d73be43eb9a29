"""Programs that measure the suite, and floors and peers beside it; results are JSON."""
