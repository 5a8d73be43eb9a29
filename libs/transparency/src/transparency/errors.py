"""What is raised for what does not verify. Callers translate it; it knows of no wire."""


class ProofInvalidError(ValueError):
    """A proof does not lead to the root that it was given for, or is no proof at all."""


class CheckpointInvalidError(ValueError):
    """A note is malformed, is not signed by a known key, or is no checkpoint of the expected log."""
