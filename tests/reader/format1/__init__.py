"""Repository format 1, read from its description in docs/format.md and from nothing else."""
