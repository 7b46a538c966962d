"""Before the first step: checks of the settings and of what is on the disk, and an estimate of a larger job."""
