"""From encoded bytes to pixels: opening, decoding, cropping, augmentation, masks."""
