"""A Ctrl-C that comes where Python cannot raise it is not lost."""

import subprocess
import sys

PROGRAM = """
import gc, os, signal, sys, time
from experiments.trainer.unraisable import report_unraisable

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.unraisablehook = report_unraisable

def interrupt(phase, info):
  gc.callbacks.remove(interrupt)
  os.kill(os.getpid(), signal.SIGINT)
  sum(range(1000))  # here KeyboardInterrupt is raised

gc.callbacks.append(interrupt)
try:
  gc.collect()
  time.sleep(10)
  print("lost")
except KeyboardInterrupt:
  print("raised")
"""


def test_a_ctrl_c_within_a_callback_is_raised_after_it():
  command = [sys.executable, "-c", PROGRAM]
  result = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert (result.stdout, result.stderr) == ("raised\n", "")
