"""Generated from the protos of byok.metering; never edited."""
