"""Settings of the layers at a gateway's edge, one file each."""
