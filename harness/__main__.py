"""`python -m harness`: the command, for when the console script is not on the path."""

from harness.cli import main

# Worker processes import this module again under another name, and must not start a command of their own.
if __name__ == "__main__":
    main()
