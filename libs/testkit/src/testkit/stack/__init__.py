"""The whole suite as real processes, for demo, serve, end-to-end tests, chaos and benches."""
