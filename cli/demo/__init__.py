"""The command `pfdiff demo`, and `pfdiff demo policy`."""
