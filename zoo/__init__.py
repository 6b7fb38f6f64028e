"""One page a family, the registry of them, and the one engine that reads and writes Hugging Face directories from
their tables.
"""
