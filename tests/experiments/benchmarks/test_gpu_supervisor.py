"""Workers that crash or hang are replaced, and time limits are kept."""

from itertools import islice

import pytest

from experiments.benchmarks.gpu import supervisor as supervisor_module
from experiments.benchmarks.gpu.part import check_device
from experiments.benchmarks.gpu.supervisor import (
  NO_TIME,
  Section,
  Supervisor,
  WorkerProcess,
)
from tests.experiments.benchmarks.gpu_worker import (
  Ended,
  Fake,
  InProcess,
  end_slowly,
)
from tests.forking import FORKING

A, B = frozenset(["a"]), frozenset(["b"])  # kinds of kernels


@pytest.fixture
def forked(monkeypatch):
  """Have the processes of workers forked, and not start Python anew."""
  monkeypatch.setattr(supervisor_module, "multiprocessing", FORKING)


@pytest.fixture(
  params=["imitated", pytest.param("real", marks=pytest.mark.exhaustive)]
)
def supervisor(request, forked):
  if request.param == "imitated":
    yield Supervisor(InProcess, 1000.0)
    return
  supervisor = Supervisor(WorkerProcess, 1000.0)
  assert supervisor.environment()["platform"] == "cpu"
  yield supervisor
  supervisor.close()


def run(supervisor, *cases, **options):
  section = Section("fakes", cases, until=1000.0, **options)
  return [(case.name, result) for case, result in supervisor.run(section)]


def names(found):
  return [name for name, _ in found]


@pytest.mark.parametrize(
  ("does", "why"),
  [
    ("abort", "the process ended, exit status -6: the driver complains"),
    ("lose", "the device is lost: an illegal access"),
    ("hang", "no answer in 3 s; does it hang?"),
  ],
)
def test_after_a_case_that_ends_a_worker_the_others_run(does, why, supervisor):
  found = run(
    supervisor,
    Fake("first"),
    Fake("bad", A, does=does),
    Fake("of another kernel", B),
    Fake("of the same", A),
    together=4,
    limit=3.0 if does == "hang" else 60.0,
  )
  results = dict(found)
  assert results["bad"].failures == [f"bad: {why}"]
  assert supervisor.left_out == A
  skipped = {
    "of the same": "a case with a kernel of this kind has crashed or hung"
  }
  assert results["of the same"].skipped == skipped
  # A case is skipped at once where its kernel is left out: before others run.
  assert names(found) == ["first", "bad", "of the same", "of another kernel"]
  assert results["of another kernel"].rows[0]["left_out"] == []  # it ran B


class NeverStarts(InProcess):
  """A worker that ends, or says nothing, when it should start."""

  def receive(self, seconds):
    if not self.silent:
      raise EOFError


@pytest.mark.parametrize(
  ("silent", "why"),
  [
    (True, "no worker starts in 90 s"),
    (False, "a worker ended when it started, exit status -6: the driver "),
  ],
)
def test_where_no_worker_starts_no_kernel_is_blamed(silent, why, monkeypatch):
  monkeypatch.setattr(NeverStarts, "silent", silent, raising=False)
  supervisor = Supervisor(NeverStarts, 1000.0)
  environment = supervisor.environment()
  assert environment["why"].startswith(why)
  with pytest.raises(ValueError, match=rf"needs an H100 .*packages: {why}"):
    check_device(environment)
  found = run(supervisor, Fake("a", A), Fake("b", B))
  assert names(found) == ["a", "b"] and not supervisor.left_out
  for name, result in found:
    assert result.failures[0].startswith(f"{name}: {why}")


def test_a_worker_that_has_no_time_to_start_is_no_failure(monkeypatch):
  monkeypatch.setattr(NeverStarts, "silent", True, raising=False)
  # The 60 s of all cases are less than the 90 s that a start may take.
  supervisor = Supervisor(NeverStarts, 60.0, lambda: 0.0)
  assert supervisor.environment() == {"why": NO_TIME}
  ((_, result),) = run(supervisor, Fake("a", A))
  assert result == ([], {"a": NO_TIME}, [])


def test_compiling_has_a_limit_of_its_own():
  bad = Fake("bad", A, does="hang", when="prepare")
  ((_, result),) = run(Supervisor(InProcess, 1000.0), bad, limit=3.0)
  # COMPILE_SECONDS, and not the limit of a case that runs.
  assert result.failures == ["bad: no answer in 90 s; does it hang?"]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("forked")
def test_a_process_that_takes_long_to_end_has_an_exit_status(monkeypatch):
  monkeypatch.setattr(supervisor_module, "serve", end_slowly)
  worker = WorkerProcess()
  with pytest.raises(EOFError):
    worker.receive(60.0)
  assert worker.stop() == "exit status 3: "


def test_other_cases_stay_in_one_batch_if_the_case_at_fault_is_known():
  batches = []

  class Counting(InProcess):
    def send(self, cases, left_out):
      batches.append(len(cases))
      super().send(cases, left_out)

  supervisor = Supervisor(Counting, 1000.0)
  cases = [Fake("bad", A, does="abort"), *(Fake(f"{k}", B) for k in range(4))]
  run(supervisor, *cases, together=4)
  assert batches == [4, 4]  # "bad" and three others; then all four others


def test_a_case_that_has_not_begun_is_not_to_blame_for_the_end_of_a_worker():
  class Brittle(InProcess):
    """Its process ends after the first result, once."""

    ended = False

    def receive(self, seconds):
      message = super().receive(seconds)
      if message[0] == "result" and not Brittle.ended:
        Brittle.ended = True
        self.messages = [Ended("abort")]
      return message

  supervisor = Supervisor(Brittle, 1000.0)
  found = run(supervisor, Fake("first", A), Fake("second", B), together=2)
  assert [(case, len(r.rows)) for case, r in found] == [
    ("first", 1),
    ("second", 1),
  ]
  assert not supervisor.left_out


def test_a_case_that_can_do_without_its_kernels_runs_again(supervisor):
  bad = Fake("bad", A | B, needs_kernels=False, does="abort")
  (_, first), (_, second) = run(supervisor, bad)
  assert len(first.failures) == 1 and first.rows == []
  assert second.failures == [] and second.rows[0]["left_out"] == ["a", "b"]


def test_a_case_without_kernels_that_ends_a_worker_runs_once(supervisor):
  bad = Fake("bad", needs_kernels=False, does="abort")
  section = Section("fakes", [bad], until=1000.0)
  # At most two results, since a case that always ran again would never end.
  ((_, result),) = islice(supervisor.run(section), 2)
  assert len(result.failures) == 1


def test_a_section_of_another_library_has_a_worker_of_its_own():
  made = []

  def make(jax_on_cpu):
    made.append(jax_on_cpu)
    return InProcess()

  supervisor = Supervisor(make, 1000.0)
  supervisor.environment()
  for jax_on_cpu in (False, True, True, False):
    run(supervisor, Fake("a"), jax_on_cpu=jax_on_cpu)
  assert made == [False, True, False]


@pytest.mark.parametrize("does", ["abort", "lose"])
def test_the_case_that_ends_a_worker_before_any_runs_is_found(does, supervisor):
  bad = Fake("bad", A, does=does, when="prepare")
  found = run(supervisor, Fake("good", B), bad, Fake("other"), together=3)
  assert names(found) == ["good", "bad", "other"]
  assert [bool(result.failures) for _, result in found] == [0, 1, 0]
  assert supervisor.left_out == A


def test_an_error_of_a_case_is_one_line_and_does_not_end_the_worker():
  supervisor = Supervisor(InProcess, 1000.0)
  for when in ("prepare", "run"):
    bad = Fake("bad", A, does="raise", when=when)
    found = run(supervisor, bad, Fake("good", A))
    assert found[0][1].failures == ["bad: ValueError: two"]
    assert found[1][1].rows and not supervisor.left_out


class Clocked(InProcess):
  """A worker that takes ten seconds for a batch, by a clock of its own."""

  now = 0.0

  def send(self, cases, left_out):
    super().send(cases, left_out)
    Clocked.now += 10.0


@pytest.fixture
def clocked():
  Clocked.now = 0.0
  return Supervisor(Clocked, 100.0, lambda: Clocked.now)


def test_cases_that_would_end_too_late_are_skipped_by_name(clocked):
  cases = [Fake(f"{k}") for k in range(8)]
  section = Section("fakes", cases, until=35.0, together=2)
  found = list(clocked.run(section))
  # Two at 0, at 10 and at 20 s; at 30 s two more would take until 40.
  assert names((case.name, None) for case, _ in found) == [*"01234567"]
  assert [bool(result.rows) for _, result in found] == [True] * 6 + [False] * 2
  assert [result.skipped for _, result in found[6:]] == [
    {"6": NO_TIME},
    {"7": NO_TIME},
  ]
  assert Clocked.now == 30


def test_no_case_begins_after_the_time_limit_of_all(clocked):
  section = Section("fakes", [Fake(f"{k}") for k in range(12)], until=1e9)
  found = [bool(result.rows) for _, result in clocked.run(section)]
  assert found == [True] * 10 + [False] * 2  # of 10 s each, in 100 s


def test_the_start_of_a_worker_does_not_count_for_a_batch():
  class Slow(Clocked):
    def __init__(self, jax_on_cpu=False):
      super().__init__(jax_on_cpu)
      Clocked.now += 50.0

  Clocked.now = 0.0
  supervisor = Supervisor(Slow, 100.0, lambda: Clocked.now)
  cases = [Fake(f"{k}") for k in range(3)]
  section = Section("fakes", cases, until=85.0)
  # One case each at 50, 60 and 70 s. If the first batch counted as 60 s, with
  # the start of its worker, no other would fit.
  assert [bool(r.rows) for _, r in supervisor.run(section)] == [True] * 3


def test_the_time_limit_of_all_stops_a_case_that_still_runs():
  class Silent(InProcess):
    stopped = False

    def send(self, cases, left_out):
      Silent.sent = len(cases)

    def receive(self, seconds):
      if self.messages:  # the first one, of its start
        return super().receive(seconds)
      Silent.asked = seconds
      return None

    def stop(self):
      Silent.stopped = True
      return ""

  supervisor = Supervisor(Silent, 7.0, lambda: 0.0)
  found = run(supervisor, Fake("a", A), Fake("b"), together=2)
  assert [result.skipped for _, result in found] == [
    {"a": NO_TIME},
    {"b": NO_TIME},
  ]
  assert Silent.sent == 2 and Silent.asked == 7.0
  assert Silent.stopped and not supervisor.left_out
