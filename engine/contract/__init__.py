"""The contract of an engine: what its network takes and predicts, its conditions, its prompts, its observations."""
