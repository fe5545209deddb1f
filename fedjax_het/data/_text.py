"""Text as tokens: characters of a fixed alphabet, or the commonest words."""

import collections
import re
from collections.abc import Iterable, Mapping

import numpy as np

# Of the plays and of LEAF's Shakespeare; fixed, so that a model's size does not
# depend on the clients that were chosen.
ALPHABET = (
  "\n !\"$&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]"
  "abcdefghijklmnopqrstuvwxyz}—"
)
OTHER = 0  # the token of what is not in the vocabulary

_CODES = {letter: 1 + k for k, letter in enumerate(ALPHABET)}
_WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9']")


def letters(text: str) -> np.ndarray:
  """i32[len(text)]: 1 + the place in `ALPHABET`, or `OTHER`."""
  return np.array([_CODES.get(letter, OTHER) for letter in text], np.int32)


def words(text: str) -> list[str]:
  """Words in small letters and single punctuation marks, in their order."""
  return _WORD.findall(text.lower())


def commonest(texts: Iterable[list[str]], size: int) -> dict[str, int]:
  """The `size` commonest words and their tokens 1 .. size.

  Words that are as common as each other come in alphabetical order.
  """
  counts = collections.Counter(word for text in texts for word in text)
  ranked = sorted(counts, key=lambda word: (-counts[word], word))[:size]
  return {word: 1 + k for k, word in enumerate(ranked)}


def encode(text: list[str], codes: Mapping[str, int]) -> np.ndarray:
  """i32[len(text)]: each word's token, or `OTHER`."""
  return np.array([codes.get(word, OTHER) for word in text], np.int32)


def next_token(
  tokens: np.ndarray, length: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
  """Windows of a text and the token after each.

  Args:
    tokens: i32[m].
    length, stride: in tokens.

  Returns:
    x i32[w, length], y i32[w]; w is 0 if m <= length.
  """
  if tokens.size <= length:
    return np.zeros((0, length), np.int32), np.zeros(0, np.int32)
  view = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::stride]
  return view[:, :-1], view[:, -1]
