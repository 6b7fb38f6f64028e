"""The ground floor: meshes, and the one table that says which mesh axes each logical axis is spread over."""
