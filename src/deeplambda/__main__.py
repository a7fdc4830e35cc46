"""`python -m deeplambda`: the command line, wherever its script was installed."""

from deeplambda.cli import main

if __name__ == "__main__":
    main()
