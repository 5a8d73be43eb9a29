"""Generated from the protos of byok.type.v1; never edited."""
