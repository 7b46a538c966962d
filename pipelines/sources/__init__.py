"""Where raw images come from: each source lists items with labels and reads their bytes."""
