"""Streams: a worker that sends the log to other systems while it happens.

The destinations are rows of `pgaudit_wf.stream_destination`. Object storage and Parquet need the
extra `pgaudit-wf[archive]`; the other kinds need nothing.
"""

from pgaudit_wf.streams.formats import Item
from pgaudit_wf.streams.targets import Destination, Target, target_for
from pgaudit_wf.streams.worker import StreamWorker

__all__ = ["Destination", "Item", "StreamWorker", "Target", "target_for"]
