"""Generated from the protos of byok.router.v1; never edited."""
