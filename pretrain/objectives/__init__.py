"""What is minimised: one function per objective."""
