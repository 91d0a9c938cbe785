"""``make demo``: an agent on bare S3 and on a stack, side by side, and a crash in the middle of a turn.

A real agent of the SDK takes the same turns on ``S3Backend`` and on ``memory > directory > S3``, on a real S3
server that runs for the demo only. Only its model is scripted. Every figure is measured while it runs; nothing
is left behind, also after Ctrl-C.
"""
