"""Where arrays live: the mesh, the sharding tables, several hosts."""
