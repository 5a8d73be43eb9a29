"""Generated from the protos of byok; never edited."""
