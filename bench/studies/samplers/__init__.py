"""How good samplers are: each study samples networks with many of them, once for a table."""
