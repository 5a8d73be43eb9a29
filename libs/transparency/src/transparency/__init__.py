"""Transparency logs: Merkle trees, proofs, tiles, signed notes and checkpoints. Pure; it reads and asks nothing."""
