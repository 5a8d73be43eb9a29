"""Pure codecs: one dialect's bytes to and from the normalized form. No I/O, no key, no clock."""
