"""Generated from the protos of byok.metering.v1; never edited."""
