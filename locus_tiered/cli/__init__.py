"""``locus-tiered``: the command line for whoever has to look after a checkpoint store. One module per command."""
