"""Config → live objects. The only package that imports every other, so that no other has to."""
