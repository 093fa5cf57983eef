"""TF-IDF of words reduced by a truncated SVD: latent semantic analysis (Deerwester et al. 1990).

Words, weights and axes are kept beside the view, so that items of a later catalogue get vectors in the same space.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from llmrec.runtime import disk

FILE = "tfidf.npz"


@dataclass(frozen=True)
class Tfidf:
    """Fitted TF-IDF. Shapes: W words, D dimensions, n texts.

    Attributes:
        words: The W words.
        idf: (W,) inverse document frequency of each word.
        axes: (D, W) right singular vectors.
    """

    words: Sequence[str]
    idf: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int, seed: int) -> tuple[Tfidf, np.ndarray, np.ndarray]:
        """Count the words of texts and find the axes.

        Args:
            texts: n texts, at least one of which has a word.
            dim: D; smaller if there are fewer texts or words.
            seed: Seed of the truncated SVD.

        Returns:
            The model; the (m,) texts that have a word; and their (m, D) vectors.

        Raises:
            ValueError: If no text has a word.
        """
        vectorizer = word_vectorizer()
        weights = vectorizer.fit_transform(texts)
        rows = _with_words(weights)
        svd = TruncatedSVD(min(dim, len(rows), weights.shape[1]), random_state=seed)
        vectors = svd.fit_transform(weights[rows])
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, svd.components_), rows, vectors

    def transform(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of texts by the words, weights and axes that were fitted.

        Args:
            texts: n texts.

        Returns:
            The (m,) texts that have one of the words, and their (m, D) vectors.
        """
        vectorizer = word_vectorizer(self.words)
        vectorizer.idf_ = self.idf
        weights = vectorizer.transform(texts)
        rows = _with_words(weights)
        return rows, np.asarray(weights[rows] @ self.axes.T)

    def save(self, directory: Path) -> None:
        """Write `tfidf.npz`; it appears only when it is complete."""
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)  # a word has no line break
        with disk.replacing(directory / FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, words=words, idf=self.idf, axes=self.axes)

    @classmethod
    def load(cls, directory: str | Path) -> Tfidf:
        """Read what `save` wrote.

        Raises:
            ValueError: If there is no such file, or it is none of ours.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise ValueError(
                f"'{path}' does not exist, so new texts cannot be brought into the space of the old ones; run "
                "`llmrec embed` again on the catalogue that was appended to, with the options of its views."
            )
        try:
            with np.load(path, allow_pickle=False) as kept:
                words = kept["words"].tobytes().decode().split("\n")
                model = cls(words, kept["idf"], kept["axes"])
        except (OSError, ValueError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
            raise ValueError(f"'{path}' cannot be read ({error}); run `llmrec embed` again.") from error
        if model.idf.shape != (len(words),) or model.axes.shape[1:] != (len(words),):
            raise ValueError(f"'{path}' does not hold a weight and an axis for each word; run `llmrec embed` again.")
        return model


def word_vectorizer(words: Sequence[str] | None = None) -> TfidfVectorizer:
    """Weights of the words of texts, in lower case.

    Args:
        words: Words to count; those of the fitted texts when left out.
    """
    # The default token pattern drops one-letter words, which are whole titles ("M", "Z").
    return TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32, vocabulary=words)


def _with_words(weights: sparse.csr_array) -> np.ndarray:
    """Rows of the texts that have a word; one without says nothing."""
    return np.flatnonzero(np.diff(weights.indptr))
