"""The tables of the PFDiff paper, drawn again on `fashion`: cells are sampled, tables made of them."""
