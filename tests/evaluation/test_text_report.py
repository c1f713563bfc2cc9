"""What is shown and written of generated text is the text, in any script and on any terminal."""

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import load_tokenizer
from ebt_jax.evaluation import asked, text_report
from ebt_jax.use.generate import Written

BYTES = load_tokenizer("bytes")


def written(prompt, text, energies=None, **options):
  """As if each byte of `text` had been generated; energies rise from 0 by 1 unless given."""
  tokens = BYTES.encode(text).tolist()
  energies = energies or [float(i) for i in range(len(tokens))]
  return Written(BYTES.encode(prompt).tolist(), tokens, energies, [2] * len(tokens), **options)


def drawn(text, **options):
  return text_report.draw(written("a", text), BYTES, **options).splitlines()[2:]


def test_each_character_has_its_bar():
  w = written("the", " abc", [0.0, 7.0, 3.0, 1.0])
  assert text_report.draw(w, BYTES).splitlines() == [
    "prompt: 'the'",
    "continuation, energy of each token from ▁ 0.000 to █ 7.000:",
    "   abc",
    "  ▁█▄▂",
  ]
  half = text_report.draw(written("é", "b", [1.0], window_full=[0, 3]), BYTES, "entropy")
  assert "entropy of each token" in half and "the window was full after 0, 3 tokens" in half


def test_a_character_of_several_tokens_has_one_bar_of_their_mean():
  """The four bytes of an emoji have a mean energy of 1.5: a bar of half the height, as wide as the emoji."""
  w = written("a", "🙂b", [0.0, 1.0, 2.0, 3.0, 3.0])
  assert text_report.draw(w, BYTES).splitlines()[2:] == ["  🙂b", "  ▅▅█"]
  tokens = text_report.as_json(w, BYTES)["tokens"]
  assert [t["text"] for t in tokens] == ["", "", "", "🙂", "b"]


def test_scripts_keep_text_and_bars_aligned():
  text, bars = drawn("日本")
  assert text == "  日本" and len(bars) - 2 == 4  # two columns each
  text, bars = drawn("e\u0301x")
  assert text == "  e\u0301x" and len(bars) - 2 == 2  # a combining mark has no column
  # nine bytes: the means 1, 4 and 7 of 0 to 8 are bars 1, 4 and 6 of 0 to 7; a wide character never hangs over
  assert drawn("日本語", width=7) == ["  日本", "  ▂▂▅▅", "  語", "  ▇▇"]


def test_right_to_left_text_has_a_line_for_each_token():
  lines = drawn("של")
  assert lines == ["  ▂    0.500  'ש'", "  ▇    2.500  'ל'"]


def test_text_cannot_command_a_terminal():
  text, bars = drawn("a\x1b[31m\x07\r\n\u202eb")
  assert text == r"  a\x1b[31m\x07\r⏎\u202eb" and len(text) == len(bars)


def test_terminals_that_lack_characters():
  w = written("é", "aé\n", [0.0, 1.0, 1.0, 2.0])
  assert text_report.draw(w, BYTES, encoding="ascii").splitlines() == [
    r"prompt: '\xe9'",
    "continuation, energy of each token from 1 0.000 to 8 2.000:",
    r"  a\xe9\n",
    "  15555" + "88",
  ]


def test_a_prompt_that_ends_inside_a_character():
  """The sample of a training run may: the character then belongs to the continuation, and joined they are the text."""
  whole = BYTES.encode("aéb").tolist()
  w = Written(whole[:2], whole[2:], [1.0, 2.0], [1, 1])
  found = text_report.as_json(w, BYTES)
  assert (found["prompt"], found["text"]) == ("a", "éb")


def test_a_thought_that_diverged_is_drawn_and_does_not_hide_the_others():
  w = written("a", "bcd", [0.0, 1.0, float("inf")])
  assert text_report.draw(w, BYTES).splitlines()[1:] == [
    "continuation, energy of each token from ▁ 0.000 to █ 1.000:",
    "  bcd",
    "  ▁█?",
  ]


def test_a_file_of_prompts_as_editors_write_it(tmp_path):
  path = tmp_path / "p.txt"
  path.write_bytes("\ufeffone \r\n\r\n  \r\ntwo\u2028three\x0cfour\r\n\n五".encode())
  assert asked.read_prompts(["zero"], str(path)) == ["zero", "one ", "two\u2028three\x0cfour", "五"]
  path.write_bytes(b"\xef\xbb\xbf\r\n \n")
  with pytest.raises(ConfigError, match=r"p.txt holds no prompt"):
    asked.read_prompts(["zero"], str(path))


@pytest.mark.parametrize(
  "text, note",
  [
    ("and then the the the the the", "ends in 5 times ' the'"),
    ("abcabcabcabc", "ends in 4 times 'abc'"),
    ("abcabcabc", ""),  # three times may be meant
    ("aaaa", ""),  # so may four letters
    ("x" * 11 + "y", ""),
    (" \n", "the continuation is empty"),
    ("", "the continuation is empty"),
  ],
)
def test_circles_and_empty_texts_are_named(text, note):
  found = text_report.degenerate(list(text.encode()), list(text))
  assert note in found and bool(note) == bool(found)
