"""The steps of a probe: a frozen model, its features kept on the disk, and what is learned from them."""
