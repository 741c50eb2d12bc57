"""Read TensorBoard's files.

A record has a length and its CRC, then a protocol buffer and its CRC.

Reference: TensorFlow, tensorflow/core/lib/io/record_writer.h.
"""

import numpy as np
import pytest

proto = pytest.importorskip("tensorboardX.proto.event_pb2")


def read_events(path):
  """Return the events of a file."""
  data, events = path.read_bytes(), []
  while data:
    end = 12 + int.from_bytes(data[:8], "little")
    events.append(proto.Event.FromString(data[12:end]))
    data = data[end + 4 :]
  return events


def shown_events(directory):
  """Return what TensorBoard shows of a run: {tag: [(step, value), ...]}.

  Where a process starts or resumes a run, it writes a START event: TensorBoard
  then drops the earlier events of its step and of later steps.
  """
  shown = []
  for path in sorted((directory / "tensorboard").iterdir()):
    for event in read_events(path):
      if event.session_log.status == proto.SessionLog.START:
        shown = [(s, value) for s, value in shown if s < event.step]
      shown += [(event.step, value) for value in event.summary.value]
  by_tag = {}
  for step, value in shown:
    kind = value.WhichOneof("value")
    content = getattr(value, kind)
    if kind == "tensor":
      (content,) = (text.decode() for text in content.string_val)
    elif kind == "histo":
      content = tuple(content.bucket_limit), tuple(content.bucket)
    by_tag.setdefault(value.tag, []).append((step, content))
  return by_tag


def stored(value):
  """Return a number as an event stores it, in float32."""
  return float(np.float32(value))
