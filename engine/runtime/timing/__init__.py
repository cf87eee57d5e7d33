"""How long calls take: whole samples, what fits into a deadline, calls at a fixed rate."""
