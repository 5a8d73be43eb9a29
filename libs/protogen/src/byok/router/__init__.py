"""Generated from the protos of byok.router; never edited."""
