"""Near-duplicates between sets: perceptual hashes of several views, a search, and a comparison pixel by pixel."""
