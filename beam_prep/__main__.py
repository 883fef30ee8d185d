"""`python -m beam_prep` is `beam-prep`."""

from beam_prep.cli import main

if __name__ == "__main__":
    main()
