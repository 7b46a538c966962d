"""Processing of batches on the device: normalisation, mixup and CutMix, random erasing."""
