"""``python -m dode``: the command ``dode``, for an environment whose scripts are not on the path."""

from dode.cli import main

if __name__ == "__main__":
    raise SystemExit(main(prog="python -m dode"))
