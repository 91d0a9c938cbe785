"""``make demo``: an agent on bare S3 and with write-behind, side by side, then an outage, then a crash.

A real agent of the SDK takes the same turns on ``S3Backend`` and on two stacks that write behind, on a real S3
server that runs for the demo only. Only its model is scripted. Every figure is measured while it runs; nothing
is left behind, also after Ctrl-C.
"""
