"""Numbers with three digits and a unit."""

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def amount(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit, name in UNITS:
        if abs(count) >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:g}"


def size(count: float) -> str:
    """Bytes: 1234567 -> 1.23 MB."""
    number = amount(count).replace("B", "G")
    return f"{number[:-1]} {number[-1]}B" if number[-1].isalpha() else f"{number} B"
