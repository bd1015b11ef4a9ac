"""Discovery: where the instances of a service are, and how this one says that it is there."""
