"""What every BYOK service shares: server, identity, errors, coalescer, telemetry."""
