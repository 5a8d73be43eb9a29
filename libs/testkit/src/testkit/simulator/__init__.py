"""A stand-in for the providers: their wire formats, their words for failures, and faults on demand."""
