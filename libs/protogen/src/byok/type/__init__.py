"""Generated from the protos of byok.type; never edited."""
