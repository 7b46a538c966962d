"""What happens to a batch on the device: normalisation, mixup and CutMix, random erasing."""
