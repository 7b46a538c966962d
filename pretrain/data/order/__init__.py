"""Which sample is drawn when: pure functions, without torch and without I/O."""
