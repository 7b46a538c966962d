"""How the training state is sharded among ranks; everything that depends on it asks one ``Sharding`` object."""
