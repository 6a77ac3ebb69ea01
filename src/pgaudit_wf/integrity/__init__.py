"""Tamper evidence: the log as a Merkle tree with signed checkpoints."""
