"""`python -m exo`: the same as the command `exo`."""

from exo.cli.main import main

if __name__ == "__main__":
    main()
