"""Config → live objects. The only room that imports every other, so that no other has to."""
