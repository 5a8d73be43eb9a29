"""Redis: admission by script, and the outbox."""
