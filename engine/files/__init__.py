"""Files that somebody else may have written: only regular ones are opened, sizes come first, hashes are compared."""
