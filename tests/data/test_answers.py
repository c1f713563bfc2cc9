"""Prompts with answers, and chats: what is learnt of them."""

import json
import pathlib

import numpy as np
import pytest

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import text, windows
from ebt_jax.data.examples import WindowExamples
from ebt_jax.data.tokenizers import load_tokenizer

BYTES = load_tokenizer("bytes")
END = 256


def written(tmp_path, rows):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def config(path, **more):
  return DataConfig(source=path, layout="document", context_length=12, **more)


def learnt(found):
  """The learnt text of each row, its end as a full stop."""
  return [BYTES.decode([t if t != END else 46 for t in row[1:][valid]]) for row, valid in zip(*rows_of(found))]


def rows_of(found):
  return found.tokens, found.valid(slice(None))


def test_answers_are_learnt_and_prompts_are_read(tmp_path, caplog):
  rows = [
    {"q": "2+2=", "a": "four"},
    {"q": "a long question: ", "a": "yes"},
    {"q": "x", "a": ""},
    {"q": None, "a": "no"},
  ]
  found, counts = text.whole(config(written(tmp_path, rows), prompt_key="q", text_key="a"), BYTES)
  assert learnt(found) == ["four.", "yes.", "o."]  # the first token of a text has nothing before it
  assert BYTES.decode(found.tokens[0][:8]) == "2+2=four" and set(found.tokens[0][8:]) == {END}
  assert BYTES.decode(found.tokens[1][:12]) == "uestion: yes"  # the beginning of the prompt is what is lost
  assert counts["shortened"] == 1 and counts["documents"] == 3
  assert "1 of 3 examples are longer than data.context_length=12" in caplog.text
  batch = WindowExamples(found, BYTES.token_bytes, 257).rows(np.arange(3))
  assert batch["weights"].sum(1).tolist() == [5, 4, 2] and batch["bytes"].tolist() == [4, 3, 1]
  assert sum(len(t) for t in found.targets()) == 11


def test_chats_learn_what_the_assistant_says(tmp_path):
  def say(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]

  rows = [
    {"messages": say(("user", "hi"), ("assistant", "yo"), ("user", "so"), ("assistant", "ok"))},
    {"messages": say(("user", "nobody answers"))},
  ]
  chat = DataConfig(source=written(tmp_path, rows), layout="document", context_length=80, text_key="messages")
  found, _ = text.whole(chat, BYTES)
  assert learnt(found) == ["yo\nok\n."]
  shown = BYTES.decode(found.tokens[0][: found.lengths[0]])
  assert shown == "user: hi\nassistant: yo\nuser: so\nassistant: ok\n"
  with pytest.raises(ConfigError, match="layout.*document"):
    text.whole(DataConfig(source=chat.source, text_key="messages"), BYTES)
  written(tmp_path, rows[1:])
  with pytest.raises(ConfigError, match="rows.jsonl holds no text; found rows without text: 1; .*of the assistant"):
    text.whole(chat, BYTES)


def test_both_splits_and_their_limits(tmp_path):
  rows = [{"q": f"{i}", "a": "abc"} for i in range(40)]
  asked = config(written(tmp_path, rows), prompt_key="q", text_key="a", held_out=0.3)
  with pytest.raises(ConfigError, match="context_length"):
    text.build(asked, BYTES)
  found = text.build(DataConfig(**{**vars(asked), "context_length": 5, "max_tokens": 10}), BYTES)
  assert len(found.train) == 2 and found.summary["train_tokens"] == 8 and found.summary["train_bytes"] == 6
  assert set(learnt(found.held_out)) == {"abc."}
  one = windows.fingerprint(found.train, found.counts["train"])
  other = windows.Windows(found.train.tokens, found.train.lengths)
  assert one != windows.fingerprint(other, found.counts["train"])


@pytest.mark.parametrize(
  "rows, more, message",
  [
    ([{"a": "x"}], {"prompt_key": "q", "text_key": "a"}, "config.data.prompt_key: .*rows.jsonl:1: no key 'q'; found a"),
    ([{"q": 1, "a": "x"}], {"prompt_key": "q", "text_key": "a"}, "'q' holds int, expected text"),
    ([{"a": ["x"]}], {"text_key": "a"}, "rows.jsonl:1: message 1: expected .*role.*found x"),
    ([{"q": "x", "a": ["y"]}], {"prompt_key": "q", "text_key": "a"}, "'a' holds list, expected text"),
    ([{"q": "x", "a": ""}], {"prompt_key": "q", "text_key": "a"}, "holds no text; found rows without text: 1"),
  ],
)
def test_bad_rows_are_named(tmp_path, rows, more, message):
  with pytest.raises(ConfigError, match=message):
    text.whole(config(written(tmp_path, rows), **more), BYTES)


def test_sources_without_prompts_are_refused(tmp_path):
  pathlib.Path(tmp_path / "a.txt").write_text("plain")
  for source, message in {"embedded": "embedded text has no prompts", str(tmp_path / "a.txt"): "plain text"}.items():
    with pytest.raises(ConfigError, match=message):
      text.whole(config(source, prompt_key="q"), BYTES)
  with pytest.raises(ConfigError, match="config.data.prompt_key.*set data.layout=document"):
    DataConfig(prompt_key="q").check()
