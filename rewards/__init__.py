if not __name__.startswith("instructrec."):
    raise ImportError(
        f"import 'instructrec.{__name__}', not {__name__!r}: "
        "the second name would make a second copy of every registry"
    )
