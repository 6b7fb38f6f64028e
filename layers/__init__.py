"""One idea a file: a spec, its mathematics as free functions, and a thin Linen shell.

Knows no family and no file format.
"""
