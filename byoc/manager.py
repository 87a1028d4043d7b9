"""PyTrickle's managers of streams, which have no place here."""

raise ImportError(
    "BaseStreamManager, TrickleStreamManager, StreamHandler and TrickleStreamHandler are not to be had here: "
    "StreamServer manages the streams itself. For several at once give it a class or a function in place of "
    "an instance: StreamServer(MyProcessor, capacity=4)"
)
