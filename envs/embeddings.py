"""Observations as vectors of a fixed size, for agents that take numbers.

Encoders come from a folder of a model, or count hashed character n-grams and need no model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Text

from instructrec.envs.candidates import CandidatesEnv
from instructrec.envs.episode import Held, release
from instructrec.errors import ConfigError
from instructrec.rewards.embedding import TextEncoder


@runtime_checkable
class Encoder(Protocol):
    """Makes vectors of texts."""

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns N vectors of length 1 (or 0), (N, size), float32."""
        ...


class HashEncoder:
    """Counts the hashed character n-grams of a text: no model, the same on every machine.

    Args:
        size: Numbers in a vector.
        longest: n-grams of 1 to this many characters, case folded, with the ends of words marked.

    Raises:
        ConfigError: A number is below 1.
    """

    def __init__(self, size: int = 256, longest: int = 3) -> None:
        for name, value in (("size", size), ("longest", longest)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"HashEncoder: {name} = {value!r}: expected an integer >= 1.")
        self.size, self.longest = size, longest

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns N vectors of length 1; zeros for a text without any visible character."""
        rows = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.casefold().split():
                self._count(f" {word} ", row)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths > 0, lengths, 1.0).astype(np.float32)

    def _count(self, word: str, row: np.ndarray) -> None:
        for n in range(1, self.longest + 1):
            for start in range(len(word) - n + 1):
                piece = word[start : start + n]
                if piece == " ":  # every word would have two of them
                    continue
                code = zlib.crc32(piece.encode("utf-8", "replace"))
                # One bit decides the sign, so that collisions cancel out on average.
                row[(code >> 1) % self.size] += 1.0 if code & 1 else -1.0


class ModelEncoder:
    """Encodes every different text once, with a model in a local folder.

    Args:
        model: The folder (or hub id), or a `TextEncoder`.
        max_texts: Vectors that are kept; the oldest leave first. One takes 4 × size bytes.

    Raises:
        ConfigError: The folder does not exist, or ``max_texts`` is below 1.
    """

    def __init__(self, model: str | TextEncoder, *, max_texts: int = 100_000) -> None:
        if max_texts < 1:
            raise ConfigError(f"max_texts = {max_texts}: expected at least 1.")
        self.model = TextEncoder(model) if isinstance(model, str) else model
        self.max_texts = max_texts
        self.encoded = 0
        """Texts that the model was run on."""
        self._known: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Numbers in a vector; asking loads the model."""
        return self.model.size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns N vectors, (N, size); those that are not known yet in batches of the model.

        Raises:
            PolicyError: The model cannot be loaded.
        """
        missing = sorted({text for text in texts if text not in self._known})
        found = {
            text: np.asarray(vector, dtype=np.float32)
            for text, vector in self.model.vectors(missing).items()
        }
        rows = [found[text] if text in found else self._known[text] for text in texts]
        self.encoded += len(missing)
        self._known |= found
        while len(self._known) > self.max_texts:
            del self._known[next(iter(self._known))]
        return np.stack(rows) if rows else np.zeros((0, self.size), dtype=np.float32)


def make_encoder(encoder: str | Encoder) -> Encoder:
    """Makes an encoder from its name.

    Args:
        encoder: ``hash`` (`HashEncoder`), the folder or hub id of a model (`ModelEncoder`), or
            anything with ``size`` that is called with texts.

    Raises:
        ConfigError: There is no such folder, or it is no encoder.
    """
    if isinstance(encoder, str):
        return HashEncoder() if encoder == "hash" else ModelEncoder(encoder)
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"encoder = {encoder!r}: expected 'hash', the folder of a model, or an object with "
            "'size' that is called with texts and returns an array (texts, size)."
        )
    return encoder


class EmbeddingObservation(
    gym.ObservationWrapper[np.ndarray, Any, str], gym.utils.RecordConstructorArgs
):
    """Shows the embedding of a text observation instead of the text.

    Of an environment with candidates it is an array (1 + K, size): the instruction, then each
    candidate, each encoded by itself. Of others it is (size,). An empty observation, as behind the
    end of an episode, is all zeros.

    Args:
        env: An environment whose observations are text.
        encoder: ``hash``, the folder of a model, or an encoder; environments may share one.

    Raises:
        ConfigError: The observations are no text, or the encoder is none.
        PolicyError: The model cannot be loaded.
    """

    def __init__(self, env: gym.Env[str, Any], encoder: str | Encoder | Held = "hash") -> None:
        recorded = encoder if isinstance(encoder, str | Held) else Held(encoder)
        gym.utils.RecordConstructorArgs.__init__(self, encoder=recorded)
        gym.ObservationWrapper.__init__(self, env)
        if not isinstance(env.observation_space, Text):
            raise ConfigError(
                f"the observations of {env} are no text but {env.observation_space}: "
                "EmbeddingObservation goes around an environment that shows text."
            )
        self.encoder = make_encoder(release(encoder))
        inner = env.unwrapped
        self._inner = inner if isinstance(inner, CandidatesEnv) else None
        rows = () if self._inner is None else (1 + self._inner.source.num_candidates,)
        self.observation_space = Box(-1.0, 1.0, (*rows, self.encoder.size), np.float32)

    def observation(self, observation: str) -> np.ndarray:
        """Encodes what is shown."""
        shape = self.observation_space.shape
        assert shape is not None, "a Box has one"
        if not observation:
            return np.zeros(shape, dtype=np.float32)
        texts = [observation] if self._inner is None else self._inner.texts
        # Rounding may leave a length of a little more than 1.
        return self.encoder(texts).clip(-1.0, 1.0).reshape(shape)
