"""``python -m locus_tiered``: the command line."""

from locus_tiered.cli.app import main

if __name__ == "__main__":
    main()
