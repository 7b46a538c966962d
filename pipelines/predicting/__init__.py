"""What ``predict`` says of an image that is not classified."""
