"""When a checkpoint is due, and what a run says of its data and its held-out loss."""

from types import SimpleNamespace

import pytest

from ebt_jax import config as config_lib
from ebt_jax.training import console, loop


def due(step, waited, **checkpoint) -> bool:
  """Whether a session must save after this step, so many seconds after the last time."""
  config = config_lib.resolve({"checkpoint": checkpoint, "train": {"log_every": 10}})
  session = SimpleNamespace(config=config, clock=SimpleNamespace(wall_seconds=100.0 + waited), _saved_at=100.0)
  return loop.Session.must_save(session, step)


def test_by_steps():
  steps = lambda **checkpoint: [i for i in range(1, 13) if due(i, 9e9, minutes=0, **checkpoint)]
  assert steps(every=4, keep_every=6) == [4, 6, 8, 12] and steps(every=0, keep_every=0) == []


@pytest.mark.parametrize("waited, wanted", [(59.0, False), (60.0, True)])
def test_by_time_after_any_step(waited, wanted):
  assert [due(step, waited, every=0, minutes=1) for step in (3, 10)] == [wanted] * 2


def test_processes_ask_each_other_for_the_time_when_a_line_is_due(monkeypatch):
  asked = []
  monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
  monkeypatch.setattr(loop, "_any_process", lambda late: asked.append(late) or True)
  assert [due(step, 59.0, every=0, minutes=1) for step in (3, 10)] == [False, True] and asked == [False]


def test_how_often_each_example_is_seen():
  assert console.repeats(100, 100) == ""
  assert console.repeats(250, 100) == "data: this run sees each of its 100 training examples 2.5 times"


def test_a_data_set_that_is_a_sample_is_named():
  said = lambda **data: "\n".join(console.samples_of(config_lib.DataConfig(**data)))
  assert said() == said(source="samples.txt") == said(source="resampled/") == ""
  assert said(max_documents=1000) == "data: a sample: data.max_documents=1000 leaves out the rest of the source"
  assert "data.max_tokens=500 leaves out" in said(max_tokens=500)
  for source in ("fineweb/sample-10BT", "tfds:c4_sample", "data/Subset.jsonl"):
    assert f"data: {source} is named as a sample of a larger set" in said(source=source)


@pytest.mark.parametrize(
  "losses, warned",
  [
    ([2.0, 1.0, 1.02, 1.03], True),
    ([2.0, 1.0, 1.02, 1.005], False),  # within its noise again
    ([2.0, 1.0, 1.02], False),  # once may be chance
    ([2.0, 1.0, 1.02, 1.03, 0.9], False),
    ([1.0, 1.02], False),
  ],
)
def test_a_held_out_loss_that_rises_is_named(losses, warned):
  text = console.rising([(10 * i, loss) for i, loss in enumerate(losses, 1)])
  assert bool(text) == warned and (not warned or "1.0000 at step 20, 1.0200 and 1.0300 since" in text)
