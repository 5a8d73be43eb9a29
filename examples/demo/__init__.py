"""The main job of the suite, end to end, for a person to watch."""
