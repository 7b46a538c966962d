"""Lessons from each peer, for the page."""

LESSONS: dict[str, str] = {
    "deepspeed": "its `latest` file is written last, so that a failed save is never loaded. Another number of ranks "
    "needs a conversion to a universal checkpoint between two starts; ours reads the slices of any layout.",
    "accelerate": "the newest numbered folder is loaded even if its save did not finish, and the next start stops. "
    "Ours looks for a marker that is written last. Without a GPU, an FSDP plugin leaves each rank to train alone, "
    "without a warning.",
    "torch_fsdp2": "the `.metadata` of a checkpoint is written last and serves as its marker, at any number of ranks.",
    "lightning": "`last.ckpt` is a complete file after every failed save that was tried. A byte flipped in it is "
    "loaded in silence; ours compares hashes, and falls back to the checkpoint before it.",
}
