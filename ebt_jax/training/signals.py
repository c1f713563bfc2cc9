"""Signals that ask a run to save and end."""

import signal

# SIGTERM and SIGHUP come from schedulers and closed terminals, SIGUSR1 and 2 from `sbatch --signal`, SIGINT from Ctrl-C
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
ASKING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class StopSignal:
  """Remembers that a signal has asked to end, until the loop looks. A second Ctrl-C ends it at once.

  The handler raises nothing: an exception is lost where Python ignores it, such as in what runs before a fork.
  """

  def __init__(self):
    self.asked: signal.Signals | None = None
    self._before: dict = {}

  def __enter__(self) -> "StopSignal":
    for number in ASKING:
      if signal.getsignal(number) is signal.SIG_IGN:  # as `nohup` and `&` in scripts leave it: who starts us wants so
        continue
      try:
        self._before[number] = signal.signal(number, self._handle)
      except ValueError:  # not in the main thread: whoever runs us there handles signals
        break
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      if handler is not None:  # one that was not set from Python cannot be put back
        signal.signal(number, handler)

  def _handle(self, number, _frame) -> None:
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.default_int_handler)
      print("\nending as soon as all is saved; once more ends at once", flush=True)
    self.asked = signal.Signals(number)
